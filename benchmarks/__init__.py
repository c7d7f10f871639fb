"""Measurements of the pair against the stock path of the Singer SDK."""
