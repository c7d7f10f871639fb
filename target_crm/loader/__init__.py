"""Singer messages in, batches out: the target itself."""
