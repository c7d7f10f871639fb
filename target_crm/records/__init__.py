"""Convert a JSON record to a row, or give the reason why it is invalid. This package does no I/O."""
