"""The names of tables and columns. Recorded names stay; new ones are derived from the names in the source."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import chain, count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

# The limit of PostgreSQL, in bytes of UTF-8. Few engines have a lower one, such as Firebird 3 with 31.
NAME_BYTES_MAX = 63
# Leaves three bytes for a number: 60 bytes of a name are from the source.
_NUMBER_BYTES = 3


def snake_case(name: str, default: str = "column", bytes_max: int = NAME_BYTES_MAX) -> str:
    """`updatedAt` → `updated_at`, `HTTPCode` → `http_code`, `_id` → `_id`, `Имя` → `имя`.

    The result has letters and digits of any alphabet and `_`.

    Args:
        name: The name in the source.
        default: The result for a name without letters and digits.
        bytes_max: The engine's limit of names. The result leaves space for a number.
    """
    lower = unicodedata.normalize("NFC", _separated(name).lower())
    kept = re.sub(r"\0+", "_", "".join(each if _is_kept(each) else "\0" for each in lower))
    return _cut(kept, bytes_max - _NUMBER_BYTES) if any(map(str.isalnum, kept)) else default


def ascii_snake_case(name: str) -> str:
    """The name that tables and columns had before names were recorded: `Имя` → `_`."""
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

    A recorded property keeps its column. Another one gets its name in snake_case, with a number if that name is taken:
    `foo_bar`, `foo_bar_2`.

    Args:
        properties: The properties of the present schema.
        recorded: Property → column, for all properties that the stream ever had.
        stored: The columns of the existing table. One that belongs to no property was created before columns were
            recorded, so it is used by the rules of that time.
        reserved: Names that no property gets.
        bytes_max: The engine's limit of names.
        fold: Maps names that the engine may treat as equal to the same form.
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
    """Return the table of a stream without a recorded one.

    Args:
        stream: The name of the stream.
        others: The recorded tables of other streams.
        stored: The existing tables. One without a stream was created before tables were recorded.
        reserved: Names that no stream gets, such as those of views.
        bytes_max: The engine's limit of names.
        reserved_prefix: What no name may begin with.
        fold: Maps names that the engine may treat as equal to the same form.
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
    """A name from the source as a text that every engine stores: JSON if it is empty or not printable."""
    return name if name and name.isprintable() and not name.startswith('"') else json.dumps(name)


def from_text(text: str) -> str:
    """The name from which `to_text` made a text."""
    return str(json.loads(text)) if text.startswith('"') else text


def _separated(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)


def _is_kept(character: str) -> bool:
    # Letters, the marks that belong to them, and digits. MySQL's names have no characters above U+FFFF.
    return character == "_" or (unicodedata.category(character)[0] in "LMN" and character <= "\uffff")


def _exact_first(names: Iterable[str], convert: Callable[[str], str]) -> list[str]:
    """Sort names in the order in which they get their columns: first those that are column names unchanged."""
    return sorted(names, key=lambda name: (name != convert(name), name))


def _first_free(
    base: str, taken: Collection[str], stored: Collection[str], bytes_max: int, fold: Callable[[str], str]
) -> str:
    # An existing name with a number, or in another case, belongs to something else.
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
