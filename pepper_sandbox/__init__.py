"""A local Pepper: a seeded loyalty world, its HTTP API and scripted faults."""
