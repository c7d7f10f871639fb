"""A simulated Pepper: a loyalty programme, its HTTP API, and faults that tests can inject."""
