"""Talk to Pepper's API over HTTP."""
