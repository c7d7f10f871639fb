"""The command `crm-balances`."""
