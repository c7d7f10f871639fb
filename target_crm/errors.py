"""What can go wrong, named by what the reader of the message can do about it."""

from __future__ import annotations


class CrmError(Exception):
    """The run cannot continue. The message is one line: where, what happened, what to do. It holds no values."""


class SettingError(CrmError):
    """A setting is invalid."""


class WarehouseError(CrmError):
    """The warehouse cannot be reached, or rejected a statement."""


class RowRefused(WarehouseError):
    """The warehouse refused a row, because of a constraint or of a value in it."""


class ConnectionLost(WarehouseError):
    """The warehouse or the connection to it failed; the same transaction may succeed later."""


class InputError(CrmError):
    """The messages on standard input cannot be loaded as they are."""
