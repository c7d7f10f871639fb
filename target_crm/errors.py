"""The errors of target-crm and crm-balances. Each class calls for a different reaction."""

from __future__ import annotations


class CrmError(Exception):
    """The run cannot continue. The message is one line that says what happened, where, and what to do.

    The message shows no values of records.
    """


class SettingError(CrmError):
    """A setting is invalid."""


class WarehouseError(CrmError):
    """The warehouse cannot be reached, or rejected a statement."""


class RowRefused(WarehouseError):
    """The warehouse rejected a row, because it violates a constraint or contains an unsupported value."""


class ConnectionLost(WarehouseError):
    """The warehouse failed, or the connection to it failed. The same transaction may succeed later."""


class InputError(CrmError):
    """The target cannot load the messages that it reads from standard input."""
