"""What both plugins show the people who run them: log lines, progress on a terminal, traces and metrics."""
