"""The same cases on every engine that can run on one machine."""


class Unavailable(Exception):
    """An engine cannot run on this machine; the message says why."""
