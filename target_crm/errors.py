"""What can go wrong, named by what the reader of the message can do about it."""

from __future__ import annotations


class CrmError(Exception):
    """A run can't go on. The message is one line: where, what, what to do; never a secret, a person or a body."""


class SettingError(CrmError):
    """A setting is malformed."""


class WarehouseError(CrmError):
    """The warehouse can't be reached, or refused a statement."""


class RowRefused(WarehouseError):
    """The warehouse refused a row, because of a constraint or of a value in it."""


class ConnectionLost(WarehouseError):
    """The warehouse, or the way to it, failed; the same transaction may succeed later."""


class InputError(CrmError):
    """The messages on standard input can't be loaded as they are."""
