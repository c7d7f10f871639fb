"""Pure: a JSON record to a row, or the reason why it is invalid."""
