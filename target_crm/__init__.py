"""target-crm: Singer streams into a SQL warehouse, loyalty actions reduced to balances per award."""
