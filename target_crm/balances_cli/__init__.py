"""The crm-balances command."""
