"""Read a driver's error: its class, its SQLSTATE, and its message without values from records."""

from __future__ import annotations

import re
from itertools import takewhile

MESSAGE_CHARS_MAX = 500
_QUOTE = re.compile("[\"'`«»„“”]")
# In these messages, SQLite and DuckDB quote only column names or the condition of a CHECK, and no values.
_NAMES_CONSTRAINT = re.compile("(Constraint Error: )?(CHECK|NOT NULL|UNIQUE) constraint failed")
_SQLSTATE = re.compile("[0-9A-Z]{5}")


def pep_249_classes(error: Exception) -> set[str]:
    """Return the names of an error's class and its base classes. PEP 249 defines some of them for all drivers."""
    return {each.__name__ for each in type(error).__mro__}


def sqlstate(error: Exception) -> str:
    """Return the SQLSTATE of an error. Return an empty string if the driver does not provide it."""
    # psycopg2 stores it in `pgcode`, pyodbc in the first argument, and pg8000 in a field of the server's response.
    first = next(iter(error.args), None)
    given = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or response_fields(error).get("C", first)
    return given if isinstance(given, str) and _SQLSTATE.fullmatch(given) else ""


def response_fields(error: Exception) -> dict[str, str]:
    """Return the fields of PostgreSQL's response by letter, if the error comes from pg8000.

    Otherwise return no fields.
    """
    fields = next(iter(error.args), None)
    return fields if isinstance(fields, dict) else {}


def is_about_row(error: Exception) -> bool:
    """Return whether the error is about a row that violates a constraint or has an invalid value."""
    return is_about_constraint(error) or is_about_value(error)


def is_about_value(error: Exception) -> bool:
    """Return whether the warehouse rejected a value."""
    return "DataError" in pep_249_classes(error) or sqlstate(error).startswith("22")


def is_about_constraint(error: Exception) -> bool:
    """Return whether a row violates a constraint.

    DuckDB reports a violation at COMMIT as a failed transaction, so look for the word `constraint` in the message.
    """
    return (
        "IntegrityError" in pep_249_classes(error)
        or sqlstate(error).startswith("23")
        or "constraint" in str(error).strip().partition("\n")[0]
    )


def describe(error: Exception) -> str:
    """Describe an error of any driver on one line, without values from records.

    An error about a value may quote the value, so leave out its message. An error about a constraint may also quote
    values, so keep only its first line, up to the first quotation mark. For other errors, keep more lines, because the
    first line alone may be useless, such as Firebird's `Dynamic SQL Error`.
    """
    name, state = type(error).__name__, sqlstate(error)
    lines = [line.strip(" -\t") for line in str(error).strip().splitlines()] or [""]
    if is_about_value(error):
        said = "a value was rejected"
    elif is_about_constraint(error):
        said = lines[0] if _NAMES_CONSTRAINT.match(lines[0]) else _QUOTE.split(lines[0])[0].strip()
    else:
        # Some drivers repeat the statement after an empty line or `LINE 1:`.
        said = "; ".join(takewhile(lambda line: line and not line.startswith("LINE "), lines))
    return ": ".join(filter(None, (name, said[:MESSAGE_CHARS_MAX] or state)))
