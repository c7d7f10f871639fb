"""The tap's settings: how they are declared to users, and how they are checked before anything is sent."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from singer_sdk import typing as th

from pepper_runtime.logs import SETTING
from tap_pepper.windows import read_bound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PACKAGE = "pepper-crm"
VALUE_CHARS_MAX = 60
"""An error shows no more of a wrong value than this."""


def default_user_agent() -> str:
    """`pepper-crm/<version>`."""
    try:
        return f"{PACKAGE}/{version(PACKAGE)}"
    except PackageNotFoundError:
        return PACKAGE


CONFIG_JSONSCHEMA: dict[str, Any] = th.PropertiesList(
    th.Property(
        "auth_token",
        th.StringType,
        required=True,
        secret=True,
        title="Auth token",
        description="The merchant's API token, given out by Pepper. It is sent in the Authorization header alone.",
    ),
    th.Property(
        "application_id",
        th.StringType,
        required=True,
        title="Application id",
        description="The merchant's code in Pepper, sent as x-application-id.",
        examples=["the-grill"],
    ),
    th.Property(
        "api_url",
        th.StringType,
        default="https://api.pepperhq.com",
        title="API address",
        description="Where Pepper is. It must be https, unless the host is this machine.",
        examples=["https://api.pepperhq.com", "https://beta-api.pepperhq.com"],
    ),
    th.Property(
        "api_version",
        th.IntegerType(minimum=1, maximum=1000),
        default=10,
        title="API version",
        description="The version of the API to speak, sent as x-api-version.",
        examples=[10],
    ),
    th.Property(
        "start_date",
        th.StringType,
        title="Start date",
        description=(
            "The first run reads the actions after this moment (ISO 8601, UTC unless it says otherwise). Without it "
            "the first run reads the last lookback_seconds, and balances begin with the awards as they are. Awards, "
            "perks and users are always read from the beginning."
        ),
        examples=["2026-01-01", "2026-01-01T06:00:00Z"],
    ),
    th.Property(
        "page_size",
        th.IntegerType(minimum=1, maximum=1000),
        default=100,
        title="Page size",
        description="Rows to ask for in one response. Pepper may send fewer.",
    ),
    th.Property(
        "settle_seconds",
        th.IntegerType(minimum=0, maximum=3600),
        default=5,
        title="Settle time (seconds)",
        description=(
            "A run reads up to Pepper's own clock less this, so that actions which are still being written are left "
            "to the next run."
        ),
    ),
    th.Property(
        "lookback_seconds",
        th.IntegerType(minimum=0, maximum=2_592_000),
        default=300,
        title="Lookback (seconds)",
        description=(
            "Each run reads again this much of what the last one read, for actions that became visible late. At most "
            "30 days."
        ),
    ),
    th.Property(
        "window_hours",
        th.IntegerType(minimum=1, maximum=8784),
        default=24,
        title="Window (hours)",
        description=(
            "The actions of at most this many hours are read before the bookmark moves; of fewer hours where many "
            "actions happen. A run that is killed goes on at the last complete window."
        ),
    ),
    th.Property(
        "concurrency",
        th.IntegerType(minimum=1, maximum=16),
        default=4,
        title="Concurrency",
        description=(
            "How many requests may be under way at once, when more than one window of actions is to be read. Where "
            "Pepper says that it is too much, the tap halves it by itself, and comes back slowly."
        ),
    ),
    th.Property(
        "max_run_seconds",
        th.IntegerType(minimum=1, maximum=604_800),
        title="Longest run (seconds)",
        description=(
            "After this time no further window and no further stream is begun, and no wait that Pepper asks for is "
            "sat out, but in a reading of all perks, awards or users; the run ends well, and the next goes on there. A "
            "quarter of it is kept for the streams other than actions. Every run gets further than the one before, "
            "whatever that takes. By default a run ends when all is read."
        ),
        examples=[240],
    ),
    th.Property(
        "action_types",
        th.ArrayType(th.StringType),
        default=[],
        title="Action types",
        description="The types of action to read. Empty: every type.",
        examples=[["REWARD_EARNED", "REDEEM_PERK", "AWARD_POINTS_REFUNDED"]],
    ),
    th.Property(
        "reconcile_hours",
        th.IntegerType(minimum=0, maximum=168),
        default=0,
        title="Self-audit after (hours)",
        description=(
            "Read every hour of actions a second time when it is this old. Where it is not what was emitted, the hour "
            "is emitted again, and a warning tells how many actions arrived later than lookback_seconds. 0: never."
        ),
    ),
    th.Property(
        "awards_full_refresh_days",
        th.IntegerType(minimum=0, maximum=366),
        default=0,
        title="Full refresh of awards (days)",
        description=(
            "Read all awards again every so many days, and tell by an ACTIVATE_VERSION message that those which two "
            "such readings in a row have missed are deleted. 0: never."
        ),
    ),
    th.Property(
        "max_deleted_fraction",
        th.NumberType(minimum=0, maximum=1),
        default=0.5,
        title="Largest fraction deleted at once",
        description=(
            "Where more than this fraction of the known perks (or awards) is missing from a complete list, it is taken "
            "for an error: a warning is logged, and nothing counts as deleted."
        ),
    ),
    th.Property(
        "include_credentials",
        th.BooleanType,
        default=False,
        title="Include credentials",
        description=(
            "Ask for users' credentials too. They are personal data: they are emitted only where the catalog selects "
            "users.credentials."
        ),
    ),
    th.Property(
        "request_timeout_seconds",
        th.IntegerType(minimum=1, maximum=3600),
        default=60,
        title="Request timeout (seconds)",
        description="How long to wait for a connection, and then for each part of a response.",
    ),
    th.Property(
        "max_retries",
        th.IntegerType(minimum=0, maximum=20),
        default=8,
        title="Retries",
        description="How often to repeat a request that failed for a passing reason, with growing waits in between.",
    ),
    th.Property(
        "user_agent",
        th.StringType,
        title="User agent",
        description="How the tap presents itself to Pepper. By default the name and version of this package.",
        examples=["the-grill-etl (data@the-grill.example)"],
    ),
    SETTING,
).to_dict()

SECRETS = frozenset(name for name, schema in CONFIG_JSONSCHEMA["properties"].items() if schema.get("secret"))
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
SENT_IN_HEADERS = ("auth_token", "application_id", "user_agent")


class SchemaError(Protocol):
    """What is read of a `jsonschema.ValidationError`."""

    absolute_path: Sequence[str | int]
    validator: str
    validator_value: Any
    instance: Any


@dataclass(frozen=True)
class Settings:
    """The settings of one run, checked and complete. Units are in the names; `start` is a bound (see windows)."""

    auth_token: str = field(repr=False)
    application_id: str
    api_url: str
    api_version: int
    start: str | None
    page_size: int
    settle_seconds: int
    lookback_seconds: int
    window_hours: int
    concurrency: int
    max_run_seconds: int | None
    action_types: tuple[str, ...]
    reconcile_hours: int
    awards_full_refresh_days: int
    max_deleted_fraction: float
    include_credentials: bool
    request_timeout_seconds: int
    max_retries: int
    user_agent: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """Take a configuration in which `problems` found nothing."""
        given = {
            name: config.get(name, schema.get("default")) for name, schema in CONFIG_JSONSCHEMA["properties"].items()
        }
        start_date = given["start_date"]
        return cls(
            auth_token=given["auth_token"].strip(),
            application_id=given["application_id"].strip(),
            api_url=given["api_url"].strip().rstrip("/"),
            api_version=given["api_version"],
            start=read_bound(start_date) if start_date else None,
            page_size=given["page_size"],
            settle_seconds=given["settle_seconds"],
            lookback_seconds=given["lookback_seconds"],
            window_hours=given["window_hours"],
            concurrency=given["concurrency"],
            max_run_seconds=given["max_run_seconds"],
            action_types=tuple(name.strip() for name in given["action_types"] if name.strip()),
            reconcile_hours=given["reconcile_hours"],
            awards_full_refresh_days=given["awards_full_refresh_days"],
            max_deleted_fraction=given["max_deleted_fraction"],
            include_credentials=given["include_credentials"],
            request_timeout_seconds=given["request_timeout_seconds"],
            max_retries=given["max_retries"],
            user_agent=(given["user_agent"] or default_user_agent()).strip(),
        )


def problems(config: Mapping[str, Any], schema_errors: Iterable[SchemaError]) -> list[str]:
    """What is wrong with a configuration, one line each, no secret in any.

    Args:
        config: The settings as the user gave them, defaults filled in.
        schema_errors: What the settings' JSON Schema has to say against them.
    """
    lines = list(dict.fromkeys(line for error in schema_errors for line in _words(error)))
    named = {line.split(" ", 1)[0] for line in lines}
    checks = {
        **dict.fromkeys(SENT_IN_HEADERS, _header_problem),
        "api_url": _address_problem,
        "start_date": _start_date_problem,
    }
    for name, check in checks.items():
        value = config.get(name)
        if name in named or value is None:
            continue
        problem = check(value)
        if problem:
            lines.append(f"{name} {problem}")
    return lines


def environment_problems(
    schema: Mapping[str, Any], environment: Mapping[str, str], *, prefix: str = "TAP_PEPPER_"
) -> list[str]:
    """What is wrong with settings that come from environment variables, one line each."""
    lines = []
    for name, property_schema in schema["properties"].items():
        variable = prefix + name.upper()
        text = environment.get(variable)
        if text is None:
            continue
        kinds = property_schema.get("type", [])
        if "integer" in kinds and not text.strip().lstrip("+-").isdecimal():
            lines.append(f"{variable} is {_shown(text)}, expected {_expected(property_schema)}")
        if "number" in kinds and not _NUMBER.fullmatch(text.strip()):
            lines.append(f"{variable} is {_shown(text)}, expected {_expected(property_schema)}")
        if "boolean" in kinds and text.lower() not in {"true", "1", "yes", "on", "false", "0", "no", "off"}:
            lines.append(f"{variable} is {_shown(text)}, expected true or false")
        if "object" in kinds and not _is_json(text):
            lines.append(f"{variable} is not JSON, expected an object")
    return lines


def environment_numbers(
    schema: Mapping[str, Any], environment: Mapping[str, str], *, prefix: str = "TAP_PEPPER_"
) -> dict[str, float]:
    """The settings that are numbers with a point, from environment variables: the SDK would leave them texts."""
    numbers = (name for name, property_schema in schema["properties"].items() if "number" in property_schema["type"])
    return {name: float(text) for name in numbers if (text := environment.get(prefix + name.upper())) is not None}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _words(error: SchemaError) -> Iterator[str]:
    """Say what a JSON Schema error means for the one who set the setting. jsonschema's own words quote the value."""
    if not error.absolute_path:
        for name in error.validator_value if error.validator == "required" else ():
            if name not in error.instance:
                yield f"{name} is missing: set it in the config file or as TAP_PEPPER_{name.upper()}"
        return
    name, *deeper = (str(part) for part in error.absolute_path)
    if name in SECRETS:
        yield f"{name} has the wrong type, expected text"
    elif name in CONFIG_JSONSCHEMA["properties"] and not deeper:
        yield f"{name} is {_shown(error.instance)}, expected {_expected(CONFIG_JSONSCHEMA['properties'][name])}"
    else:
        yield f"{'.'.join((name, *deeper))} is {_shown(error.instance)}, which is not allowed there"


def _expected(schema: Mapping[str, Any]) -> str:
    kinds = schema.get("type", [])
    if "integer" in kinds:
        bounded = "minimum" in schema and "maximum" in schema
        return "a whole number" + (f" from {schema['minimum']} to {schema['maximum']}" if bounded else "")
    if "number" in kinds:
        return f"a number from {schema['minimum']} to {schema['maximum']}"
    if "boolean" in kinds:
        return "true or false"
    if "array" in kinds:
        return 'a list of texts, like ["A", "B"]'
    return "text" if "string" in kinds else "an object"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"


def _header_problem(value: str) -> str | None:
    text = value.strip()
    if not text:
        return "is empty"
    # A header's value with a line break or a letter outside of ASCII fails deep in the HTTP library, which quotes it.
    return None if text.isascii() and text.isprintable() else "holds a character that no HTTP header can carry"


def _start_date_problem(value: str) -> str | None:
    try:
        read_bound(value)
    except ValueError:
        return f"is {_shown(value)}, expected ISO 8601, like 2026-01-01 or 2026-01-01T06:00:00Z"
    return None


def _address_problem(value: str) -> str | None:
    example = f"expected an address like {CONFIG_JSONSCHEMA['properties']['api_url']['default']}"
    try:
        address = urlsplit(value.strip())
        _ = address.port
    except ValueError:
        return f"is not an address, {example}"
    if address.username or address.password or address.query or address.fragment:
        return f"holds more than a scheme, a host and a path, {example}"
    if address.scheme not in {"http", "https"} or not address.hostname:
        return f"is {_shown(value)}, {example}"
    if address.scheme == "http" and not is_loopback(address.hostname):
        return f"is {_shown(value)}, expected https: the token would travel readable"
    return None


def is_loopback(host: str) -> bool:
    """Whether a host's name or number always means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
