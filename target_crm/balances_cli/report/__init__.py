"""The command `crm-balances report`: queries, charts, and a self-contained web page."""
