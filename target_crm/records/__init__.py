"""Convert a JSON record to a row, or say why it is invalid. This package does no I/O."""
