"""The tables and statements, as SQLAlchemy Core. This package does no I/O."""
