"""Connections, transactions and DDL. No other package opens a database."""
