"""Handle deletion records that lack some properties. Some taps send only the key of a deleted row."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = tuple[Any, ...]

ABSENT: Any = object()
"""Placeholder in a row for a value that is missing from a deletion record."""


@dataclass(frozen=True)
class Step:
    """Rows of a batch that are written together."""

    rows: Sequence[Row]
    kept: tuple[str, ...] = ()
    """The columns that keep their stored values, because the records lack the properties of these columns."""


def in_steps(
    rows: Sequence[Row], places: Mapping[str, int], keys: Sequence[str], age: str
) -> tuple[list[Step], Sequence[Row]]:
    """Divide the rows of a batch into steps, so that a deletion keeps the values of the record before it.

    Args:
        rows: The rows in the order of arrival. The last value of a row is its deletion time.
        places: Column → its index in a row.
        keys: The key columns.
        age: The column with the age of a row. If two rows with the same key are equally old, the one that arrived later
            counts as newer.

    Returns:
        The steps in the order in which they have to be written, and the deletions that a newer record of the batch
        supersedes.
    """
    if not any(row[-1] is not None and ABSENT in row for row in rows):
        return [Step(rows)], ()
    whole: list[Row] = []
    newest: dict[Row, tuple[Any, int]] = {}
    partial: list[tuple[Any, int, Row]] = []
    for arrival, row in enumerate(rows):
        key, at = tuple(row[places[each]] for each in keys), row[places[age]]
        if ABSENT in row:
            partial.append((at, arrival, row))
        else:
            whole.append(row)
            newest[key] = max(newest.get(key, (at, arrival)), (at, arrival))
    superseded: list[Row] = []
    # A deletion needs a later step if the previous deletion of the same key lacks different columns.
    last: dict[Row, tuple[int, tuple[str, ...]]] = {}
    steps: dict[tuple[int, tuple[str, ...]], list[Row]] = defaultdict(list)
    for at, arrival, row in sorted(partial, key=lambda each: each[:2]):
        key = tuple(row[places[each]] for each in keys)
        if key in newest and newest[key] > (at, arrival):
            superseded.append(row)
            continue
        kept = tuple(column for column, place in places.items() if row[place] is ABSENT)
        number, columns = last.get(key, (0, kept))
        last[key] = number + (columns != kept), kept
        steps[last[key]].append(tuple(None if value is ABSENT else value for value in row))
    in_order = [Step(found, kept) for (_, kept), found in sorted(steps.items())]
    return [*([Step(whole)] if whole else []), *in_order], superseded
