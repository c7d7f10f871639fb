"""A Pepper for this machine: guests who earn and redeem, an API to read it by, and things that go wrong on demand."""
