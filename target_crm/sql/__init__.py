"""Pure: the tables and statements, as SQLAlchemy Core."""
