"""target-crm loads Singer streams into a SQL warehouse, and computes a balance per award from loyalty actions."""
