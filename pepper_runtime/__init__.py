"""Code that both plugins share at run time: console scripts, config files, logs, progress and telemetry."""
