"""The names of tables and columns. Recorded names never change. New names are derived from the names in the source."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import chain, count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

# PostgreSQL's limit, in bytes of UTF-8. A few engines have a lower limit, such as Firebird 3 with 31.
NAME_BYTES_MAX = 63
# A name has at most 60 bytes from the source, so that three bytes are left for a suffix such as `_12`.
_NUMBER_BYTES = 3


def snake_case(name: str, default: str = "column", bytes_max: int = NAME_BYTES_MAX) -> str:
    """Convert a name to snake_case: `updatedAt` → `updated_at`, `HTTPCode` → `http_code`, `_id` → `_id`, `Имя` → `имя`.

    The result consists of letters and digits of any alphabet, and `_`.

    Args:
        name: The name in the source.
        default: The result for a name that has neither letters nor digits.
        bytes_max: The engine's limit for names. The result leaves room for a number at its end.
    """
    lower = unicodedata.normalize("NFC", _separated(name).lower())
    kept = re.sub(r"\0+", "_", "".join(each if _is_kept(each) else "\0" for each in lower))
    return _cut(kept, bytes_max - _NUMBER_BYTES) if any(map(str.isalnum, kept)) else default


def ascii_snake_case(name: str) -> str:
    """Return the name that older versions derived, before names were recorded: `Имя` → `_`."""
    return re.sub(r"[^a-z0-9_]+", "_", _separated(name).lower())[: NAME_BYTES_MAX - _NUMBER_BYTES] or "_"


def assign_columns(
    properties: Iterable[str],
    recorded: Mapping[str, str],
    stored: Collection[str],
    reserved: Collection[str],
    bytes_max: int = NAME_BYTES_MAX,
    *,
    fold: Callable[[str], str] = str.casefold,
) -> dict[str, str]:
    """Return the column of each property. The order of the properties does not matter.

    A recorded property keeps its column. A new property gets its name in snake_case. If that name is taken, a number
    follows it: `foo_bar`, `foo_bar_2`.

    Args:
        properties: The properties of the current schema.
        recorded: Property → column, for all properties that the stream ever had.
        stored: The columns of the existing table. A column without a recorded property may come from an older version.
            A property reuses such a column if the older version would have given the property this name.
        reserved: Names that no property's column may have.
        bytes_max: The engine's limit for names.
        fold: Normalizes names. If the engine may treat two names as equal, the result is the same for both.
    """
    names = set(properties)
    columns = {name: recorded[name] for name in names & recorded.keys()}
    taken = set(map(fold, chain(reserved, recorded.values())))
    former_taken = set(map(str.casefold, chain(reserved, recorded.values())))
    for name in _exact_first(names - columns.keys(), ascii_snake_case):
        former = next(each for each in _numbered(ascii_snake_case(name)) if each.casefold() not in former_taken)
        former_taken.add(former.casefold())
        if former in stored:
            columns[name] = former
            taken.add(fold(former))
    for name in _exact_first(names - columns.keys(), snake_case):
        columns[name] = _first_free(snake_case(name, bytes_max=bytes_max), taken, stored, bytes_max, fold)
        taken.add(fold(columns[name]))
    return columns


def assign_table(
    stream: str,
    others: Collection[str],
    stored: Collection[str],
    reserved: Collection[str],
    bytes_max: int = NAME_BYTES_MAX,
    *,
    reserved_prefix: str | None = None,
    fold: Callable[[str], str] = str.casefold,
) -> str:
    """Return the table for a stream that has no recorded table.

    Args:
        stream: The name of the stream.
        others: The recorded tables of other streams.
        stored: The existing tables. A table without a stream was created before tables were recorded.
        reserved: Names that no stream's table may have, such as view names.
        bytes_max: The engine's limit for names.
        reserved_prefix: A prefix that no table's name may have.
        fold: Normalizes names. If the engine may treat two names as equal, the result is the same for both.
    """
    taken = set(map(fold, chain(reserved, others)))
    former = ascii_snake_case(stream)
    if former in stored and fold(former) not in taken:
        return former
    base = snake_case(stream, "stream", bytes_max)
    if reserved_prefix and base.startswith(reserved_prefix):
        base = snake_case(f"stream_{base}", bytes_max=bytes_max)
    return _first_free(base, taken, stored, bytes_max, fold)


def to_text(name: str) -> str:
    """Convert a name from the source to text that every engine can store.

    A name becomes JSON if it is empty or unprintable, or begins with a quotation mark.
    """
    return name if name and name.isprintable() and not name.startswith('"') else json.dumps(name)


def from_text(text: str) -> str:
    """Restore the name that `to_text` has converted."""
    return str(json.loads(text)) if text.startswith('"') else text


def _separated(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)


def _is_kept(character: str) -> bool:
    # Keep letters, combining marks and digits. Names in MySQL cannot contain characters above U+FFFF.
    return character == "_" or (unicodedata.category(character)[0] in "LMN" and character <= "\uffff")


def _exact_first(names: Iterable[str], convert: Callable[[str], str]) -> list[str]:
    """Sort names in the order in which they get a column. Names that need no conversion come first."""
    return sorted(names, key=lambda name: (name != convert(name), name))


def _first_free(
    base: str, taken: Collection[str], stored: Collection[str], bytes_max: int, fold: Callable[[str], str]
) -> str:
    # Do not reuse a stored name that has a number, or that differs in case: it belongs to another stream or property.
    others = set(map(fold, stored))
    return next(
        each
        for each in _numbered(base, bytes_max)
        if fold(each) not in taken and ((each == base and base in stored) or fold(each) not in others)
    )


def _numbered(base: str, bytes_max: int = NAME_BYTES_MAX) -> Iterator[str]:
    """Yield `name`, `name_2`, `name_3` and so on."""
    suffixes = (f"_{number}" for number in count(2))
    return chain([base], (f"{_cut(base, bytes_max - len(suffix))}{suffix}" for suffix in suffixes))


def _cut(name: str, bytes_max: int) -> str:
    return name.encode(errors="ignore")[:bytes_max].decode(errors="ignore")
