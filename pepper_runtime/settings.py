"""Declare settings as fields of a dataclass.

The JSON Schema, the checks and the documentation are generated from this dataclass.
"""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from singer_sdk import typing as th

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
    from dataclasses import Field

    JsonSchema = Mapping[str, Any]

VALUE_CHARS_MAX = 60
"""An error message quotes at most this many characters of a wrong value."""

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_BOOLEANS = {"true", "1", "yes", "on", "false", "0", "no", "off"}
_JSON_TYPES: dict[str, Any] = {
    "str": th.StringType,
    "int": th.IntegerType,
    "float": th.NumberType,
    "bool": th.BooleanType,
    "tuple[str, ...]": th.ArrayType(th.StringType),
    "Mapping[str, str]": th.ObjectType(additional_properties=th.StringType()),
}


class SchemaError(Protocol):
    """The part of `jsonschema.ValidationError` that this module uses."""

    absolute_path: Sequence[str | int]
    validator: str
    validator_value: Any
    instance: Any


def setting(
    title: str,
    description: str,
    *,
    default: Any = MISSING,
    minimum: int | None = None,
    maximum: int | None = None,
    choices: Sequence[str] | None = None,
    examples: Sequence[Any] | None = None,
    secret: bool = False,
) -> Any:
    """Declare a setting. It is required if it has no default. The type annotation determines the JSON type."""
    metadata = {
        "title": title,
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
        "allowed_values": choices and list(choices),
        "examples": examples and list(examples),
        "secret": secret,
    }
    return field(default=default, metadata=metadata, repr=not secret)


def config_schema(settings: Any) -> dict[str, Any]:
    """Return the JSON Schema for a dataclass whose fields are settings."""
    return th.PropertiesList(*map(_property, fields(settings))).to_dict()


def secret_names(settings: Any) -> frozenset[str]:
    """Return the names of the settings that no message may quote."""
    return frozenset(each.name for each in fields(settings) if each.metadata["secret"])


def _property(declared: Field[Any]) -> th.Property[Any]:
    metadata = dict(declared.metadata)
    minimum, maximum = metadata.pop("minimum"), metadata.pop("maximum")
    json_type = _JSON_TYPES[str(declared.type).removesuffix(" | None")]
    if maximum is not None:
        json_type = json_type(minimum=minimum, maximum=maximum)
    if declared.default is MISSING:
        return th.Property(declared.name, json_type, required=True, **metadata)
    default = list(declared.default) if isinstance(declared.default, tuple) else declared.default
    return th.Property(declared.name, json_type, default=default, **metadata)


def hide(_: object) -> str:
    """Return `invalid` instead of the value, because someone may have put a password into the wrong setting."""
    return "invalid"


def quote(value: object) -> str:
    """Show a value as JSON, shortened to `VALUE_CHARS_MAX` characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"


def describe_errors(
    errors: Iterable[SchemaError],
    schema: JsonSchema,
    *,
    secrets: frozenset[str],
    prefix: str,
    show: Callable[[object], str],
) -> list[str]:
    """Describe how a config violates its JSON Schema, one line per problem.

    Args:
        errors: The errors that a JSON Schema validator found.
        schema: The JSON Schema of all settings.
        secrets: The settings whose value is never shown.
        prefix: The prefix of the environment variables, e.g. `TAP_PEPPER_`.
        show: How to show a wrong value: `quote` or `hide`.
    """
    return list(dict.fromkeys(line for error in errors for line in _describe(error, schema, secrets, prefix, show)))


def _describe(
    error: SchemaError, schema: JsonSchema, secrets: frozenset[str], prefix: str, show: Callable[[object], str]
) -> Iterator[str]:
    if not error.absolute_path:
        for name in error.validator_value if error.validator == "required" else ():
            if name not in error.instance:
                yield f"{name} is missing: set it in the config file or as {prefix}{name.upper()}"
        return
    name, *deeper = (str(part) for part in error.absolute_path)
    path = ".".join((name, *deeper))
    if name in secrets:
        yield f"{path} has the wrong type, expected {'text' if deeper else _expected(schema['properties'][name])}"
    elif name in schema["properties"] and not deeper:
        yield f"{name} is {show(error.instance)}, expected {_expected(schema['properties'][name])}"
    else:
        yield f"{path} is {show(error.instance)}; check its type"


def without_unset(schema: JsonSchema, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the settings that are set.

    Null means not set. An empty string also means not set, unless the setting's type is text.
    """
    return {
        name: value
        for name, value in config.items()
        if value is not None and not (_is_blank(value) and "string" not in _types(schema["properties"].get(name)))
    }


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _types(definition: JsonSchema | None) -> Sequence[str]:
    """Return the types of a setting. An unknown setting counts as text."""
    return ["string"] if definition is None else definition.get("type", [])


def clean_variables(schema: JsonSchema, prefix: str, environment: MutableMapping[str, str]) -> None:
    """Remove settings variables that are empty. Strip whitespace from the others, unless the setting is text.

    Meltano, Compose and Kubernetes pass a missing optional value as an empty string.
    """
    for name, definition in schema["properties"].items():
        variable = prefix + name.upper()
        stripped = environment.get(variable, "unset").strip()
        if not stripped:
            del environment[variable]
        elif variable in environment and "string" not in _types(definition):
            environment[variable] = stripped


def find_environment_problems(
    schema: JsonSchema, prefix: str, environment: Mapping[str, str], show: Callable[[object], str]
) -> list[str]:
    """Return what is wrong with the settings in environment variables, one line per problem.

    The SDK would accept an invalid number as text, and "maybe" as false.
    """
    lines = []
    for name, definition in schema["properties"].items():
        variable = prefix + name.upper()
        text = environment.get(variable)
        if text is None:
            continue
        types = definition.get("type", [])
        if "integer" in types and not text.strip().lstrip("+-").isdecimal():
            lines.append(f"{variable} is {show(text)}, expected {_expected(definition)}")
        if "number" in types and not _NUMBER.fullmatch(text.strip()):
            lines.append(f"{variable} is {show(text)}, expected {_expected(definition)}")
        if "boolean" in types and text.lower() not in _BOOLEANS:
            lines.append(f"{variable} is {show(text)}, expected true or false")
        if "object" in types and not _is_json(text):
            lines.append(f"{variable} is not JSON, expected an object")
    return lines


def read_environment_numbers(schema: JsonSchema, prefix: str, environment: Mapping[str, str]) -> dict[str, float]:
    """Read the decimal numbers among the environment variables, because the SDK leaves them as text."""
    numbers = (name for name, definition in schema["properties"].items() if "number" in definition["type"])
    return {name: float(text) for name in numbers if (text := environment.get(prefix + name.upper())) is not None}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _expected(definition: JsonSchema) -> str:
    types = definition.get("type", [])
    if choices := [str(each) for each in definition.get("enum", ()) if each is not None]:
        return f"one of {', '.join(choices)}"
    if "integer" in types:
        bounded = "minimum" in definition and "maximum" in definition
        return "a whole number" + (f" from {definition['minimum']} to {definition['maximum']}" if bounded else "")
    if "number" in types:
        return f"a number from {definition['minimum']} to {definition['maximum']}"
    if "boolean" in types:
        return "true or false"
    if "array" in types:
        return 'a list of strings, like ["A", "B"]'
    return "text" if "string" in types else "an object"
