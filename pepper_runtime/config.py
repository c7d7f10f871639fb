"""Read JSON files that a user names on the command line: config, state and catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn


class ConfigFileError(Exception):
    """A file is missing, unreadable or not a JSON object. The message is one line and quotes no value."""


def read_config(path: str) -> dict[str, Any]:
    """Read a config file.

    Raises:
        ConfigFileError: The file is not a JSON object in UTF-8.
    """
    name = f"config file {path}"
    try:
        # Accept the byte-order mark that Windows editors write, as the SDK does.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigFileError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigFileError(f"{name}: not UTF-8 text") from None
    return parse_object(text, name)


def parse_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: The content of the file.
        name: What error messages call the file, e.g. `config file tap.json`.

    Raises:
        ConfigFileError: The text is not a JSON object.
    """
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigFileError(f"{name}: not JSON{line}") from None
    if not isinstance(value, dict):
        raise ConfigFileError(f"{name}: expected a JSON object")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
