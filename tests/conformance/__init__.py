"""The same cases on every engine that can be had on a machine."""


class Unavailable(Exception):
    """An engine can't be had on this machine; the message says why."""
