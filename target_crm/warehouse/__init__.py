"""The only code that opens a database."""
