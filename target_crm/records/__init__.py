"""Pure: a JSON record to a row, or the reason for refusing it."""
