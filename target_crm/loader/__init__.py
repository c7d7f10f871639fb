"""The target: read Singer messages, and commit their records in batches."""
