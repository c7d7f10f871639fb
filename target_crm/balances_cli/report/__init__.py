"""The report: queries, charts, one self-contained page."""
