"""The errors of target-crm and crm-balances. Each class calls for a different reaction."""

from __future__ import annotations


class CrmError(Exception):
    """The run cannot continue. The message is one line that says what happened, where, and what to do.

    The message contains no values from records, because they may be personal data.
    """


class SettingError(CrmError):
    """A setting is invalid."""


class WarehouseError(CrmError):
    """The warehouse cannot be reached, or rejected a statement."""


class RowRefused(WarehouseError):
    """The warehouse rejected a row that violates a constraint, or that contains an unsupported value."""


class ConnectionLost(WarehouseError):
    """The warehouse or the connection failed, or a lock was held for too long. A retry may succeed."""


class InputError(CrmError):
    """The target cannot load the messages that it reads from standard input."""
