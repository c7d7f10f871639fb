"""The rows of `_crm_coverage`: one per interval for which actions were read and committed.

The transaction that commits an interval's actions also writes the interval's row. So the coverage always agrees with
the ledger.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from target_crm.records.coverage import Claims, Interval, Scope, union

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import Delete, Row, Table


def recorded(rows: Iterable[Row[Any]]) -> Claims:
    """Group the intervals in the table's rows by their scope, which is a merchant and the types of action."""
    claims: Claims = {}
    for row in rows:
        claims.setdefault(_scope(row), []).append(_interval(row))
    return claims


def changes(rows: Sequence[Row[Any]], claims: Claims) -> tuple[list[tuple[Any, ...]], list[str]]:
    """Return the changes that record new intervals: the rows to insert, and the ids of the rows to delete.

    Intervals that touch or overlap are joined into one row.
    """
    inserted: list[tuple[Any, ...]] = []
    replaced: list[str] = []
    for scope, intervals in claims.items():
        old = {row.interval_id: _interval(row) for row in rows if _scope(row) == scope}
        new = {_interval_id(scope, each): each for each in union([*old.values(), *intervals])}
        merchant = scope.merchant or None
        types = json.dumps(scope.action_types) if scope.action_types else None
        inserted += [(key, merchant, types, *each) for key, each in new.items() if key not in old]
        replaced += [key for key in old if key not in new]
    return inserted, replaced


def delete(coverage: Table, interval_ids: Collection[str]) -> Delete:
    """Delete the rows with these ids."""
    return coverage.delete().where(coverage.c.interval_id.in_(interval_ids))


def _scope(row: Row[Any]) -> Scope:
    return Scope(row.merchant or "", tuple(json.loads(row.action_types or "[]")))


def _interval(row: Row[Any]) -> Interval:
    return Interval(row.covered_from, row.covered_until)


def _interval_id(scope: Scope, interval: Interval) -> str:
    """Hash an interval and its scope. Equal intervals get the same id, so that the target stores each one only once."""
    text = json.dumps([*scope, *(edge.isoformat() for edge in interval)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
