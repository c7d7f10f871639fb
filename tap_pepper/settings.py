"""The tap's settings, declared once, and the checks that run before the first request."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pepper_runtime.logs import log_format_setting
from pepper_runtime.settings import config_schema, quote, secret_names, setting
from tap_pepper.windows import parse_bound

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

PACKAGE = "pepper-crm"
ENVIRONMENT_PREFIX = "TAP_PEPPER_"
_ACTION_TYPE = re.compile(r"[A-Z][A-Z0-9_]*")


def default_user_agent() -> str:
    """Return `pepper-crm/<version>`."""
    try:
        return f"{PACKAGE}/{version(PACKAGE)}"
    except PackageNotFoundError:
        return PACKAGE


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `CONFIG_JSONSCHEMA` and the documentation are generated from these declarations."""

    auth_token: str = setting(
        "Auth token",
        "The merchant's API token, issued by Pepper. The tap sends it only in the Authorization header.",
        secret=True,
    )
    application_id: str = setting(
        "Application id",
        "The merchant's code in Pepper, sent as x-application-id.",
        examples=["the-grill"],
    )
    api_url: str = setting(
        "API address",
        "The address of Pepper's API. It must use https, unless the host is this machine.",
        default="https://api.pepperhq.com",
        examples=["https://api.pepperhq.com", "https://beta-api.pepperhq.com"],
    )
    api_version: int = setting(
        "API version",
        "The version of Pepper's API, sent as x-api-version.",
        default=10,
        minimum=1,
        maximum=1000,
        examples=[10],
    )
    start_date: str | None = setting(
        "Start date",
        "The first run reads the actions after this time (ISO 8601, UTC unless it has an offset). Without a "
        "start_date, the first run reads only the actions of the last lookback_seconds, and balances start from the "
        "current awards. If you later choose an earlier start_date, the next run first reads the missing actions. "
        "Regardless of start_date, the first run reads all awards, perks and users.",
        default=None,
        examples=["2026-01-01", "2026-01-01T06:00:00Z"],
    )
    page_size: int = setting(
        "Page size",
        "Number of rows to request per response. Pepper may send fewer.",
        default=100,
        minimum=1,
        maximum=1000,
    )
    settle_seconds: int = setting(
        "Settle time (seconds)",
        "Each run reads up to Pepper's current time minus settle_seconds. It leaves newer actions, which Pepper may "
        "still be writing, to the next run.",
        default=5,
        minimum=0,
        maximum=3600,
    )
    lookback_seconds: int = setting(
        "Lookback (seconds)",
        "Each run re-reads the last lookback_seconds of the previous run, to find actions that became visible late. "
        "The maximum is 30 days.",
        default=300,
        minimum=0,
        maximum=2_592_000,
    )
    window_hours: int = setting(
        "Window (hours)",
        "The tap reads actions in windows of at most this length, and moves the bookmark after each window. When there "
        "are many actions, the windows are shorter. If a run is killed, the next run continues after the last "
        "complete window.",
        default=24,
        minimum=1,
        maximum=8784,
    )
    concurrency: int = setting(
        "Concurrency",
        "Maximum number of concurrent requests, when there is more than one window of actions to read. On HTTP 429 the "
        "tap halves this number, and then raises it again gradually.",
        default=4,
        minimum=1,
        maximum=16,
    )
    max_run_seconds: int | None = setting(
        "Maximum run time (seconds)",
        "Soft time limit: after it, the tap starts no new window or stream, does not wait for Pepper, and exits 0. The "
        "next run continues where this one stopped. A complete read of perks, awards or users always finishes. "
        "If actions are not the only selected stream, a quarter of the time is reserved for the other streams. Every "
        "run makes progress, even if it takes longer. By default there is no limit.",
        default=None,
        minimum=1,
        maximum=604_800,
        examples=[240],
    )
    action_types: tuple[str, ...] = setting(
        "Action types",
        "The types of action to read. By default, the tap reads all types.",
        default=(),
        examples=[["REWARD_EARNED", "REDEEM_PERK", "AWARD_POINTS_REFUNDED"]],
    )
    reconcile_hours: int = setting(
        "Self-audit after (hours)",
        "Read every hour of actions a second time, this many hours after its end. If the hour has changed since the "
        "first read, the tap emits it again and logs how many actions arrived later than lookback_seconds. 0 means "
        "never.",
        default=0,
        minimum=0,
        maximum=168,
    )
    awards_full_refresh_days: int = setting(
        "Full refresh of awards (days)",
        "Read all awards again after this many days. If awards are missing from two full refreshes in a row, the tap "
        "reports in an ACTIVATE_VERSION message that they were deleted. 0 means never.",
        default=0,
        minimum=0,
        maximum=366,
    )
    max_deleted_fraction: float = setting(
        "Largest fraction to delete",
        "If a complete read lacks more than this fraction of the known perks (or awards), the tap assumes an error in "
        "the API: it logs a warning and reports no deletions.",
        default=0.5,
        minimum=0,
        maximum=1,
    )
    include_users: bool = setting(
        "Include users",
        "Add the stream users to the catalog. Its records are personal data. Names, contacts and credentials are "
        "emitted only if the catalog also selects their fields. With Meltano, list the fields that you need under "
        "select, such as users.state.",
        default=False,
    )
    include_credentials: bool = setting(
        "Include credentials",
        "Also request users' credentials, if include_users is true. They are personal data, and are emitted only if "
        "the catalog selects users.credentials.",
        default=False,
    )
    request_timeout_seconds: int = setting(
        "Request timeout (seconds)",
        "How long to wait for a connection, and then for each part of a response.",
        default=60,
        minimum=1,
        maximum=3600,
    )
    max_retries: int = setting(
        "Retries",
        "How many times to repeat a request after a temporary failure, with growing waits in between.",
        default=8,
        minimum=0,
        maximum=20,
    )
    user_agent: str | None = setting(
        "User agent",
        "The User-Agent header. By default, it contains the name and version of this package.",
        default=None,
        examples=["the-grill-etl (data@the-grill.example)"],
    )
    log_format: str = log_format_setting()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Create the settings from a config that `find_problems` has checked. A null value means the default.

        `start_date` becomes a bound (see `windows`). Leading and trailing whitespace is removed.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            value = config.get(each.name)
            if isinstance(value, str):
                values[each.name] = value.strip()
            elif isinstance(value, list):
                values[each.name] = tuple(text.strip() for text in value if text.strip())
            elif value is not None:
                values[each.name] = value
        if start_date := values.get("start_date"):
            values["start_date"] = parse_bound(start_date)
        if api_url := values.get("api_url"):
            values["api_url"] = api_url.rstrip("/")
        return cls(**values)


CONFIG_JSONSCHEMA: dict[str, Any] = config_schema(Settings)
SECRETS = secret_names(Settings)
SENT_IN_HEADERS = ("auth_token", "application_id", "user_agent")


def find_problems(config: Mapping[str, Any], reported: Collection[str]) -> list[str]:
    """Return the problems of a config that the JSON Schema does not find, one line each.

    Args:
        config: The config, including the default values.
        reported: The settings that the JSON Schema has already rejected. They are not checked again.
    """
    lines = []
    checks = {
        **dict.fromkeys(SENT_IN_HEADERS, _header_problem),
        "api_url": _address_problem,
        "start_date": _start_date_problem,
        "action_types": _action_types_problem,
    }
    for name, check in checks.items():
        value = config.get(name)
        if name in reported or value is None:
            continue
        problem = check(value)
        if problem:
            lines.append(f"{name} {problem}")
    return lines


def _header_problem(value: str) -> str | None:
    text = value.strip()
    if not text:
        return "is empty"
    # For other characters, the HTTP library would raise an error that quotes the value, which may be the token.
    return None if text.isascii() and text.isprintable() else "contains a character that HTTP headers do not allow"


def _start_date_problem(value: str) -> str | None:
    try:
        parse_bound(value)
    except ValueError:
        return f"is {quote(value)}, expected ISO 8601, like 2026-01-01 or 2026-01-01T06:00:00Z"
    return None


def _action_types_problem(value: Iterable[str]) -> str | None:
    wrong = next((text for text in value if text.strip() and not _ACTION_TYPE.fullmatch(text.strip())), None)
    return f"contains {quote(wrong)}, expected types such as REWARD_EARNED" if wrong else None


def _address_problem(value: str) -> str | None:
    example = f"expected an address like {CONFIG_JSONSCHEMA['properties']['api_url']['default']}"
    try:
        address = urlsplit(value.strip())
        _ = address.port
    except ValueError:
        return f"is not an address, {example}"
    if address.username or address.password or address.query or address.fragment:
        return f"contains more than a scheme, a host and a path, {example}"
    if address.scheme not in {"http", "https"} or not address.hostname:
        return f"is {quote(value)}, {example}"
    if address.scheme == "http" and not is_loopback(address.hostname):
        return f"is {quote(value)}, expected https: http would send the token unencrypted"
    return None


def is_loopback(host: str) -> bool:
    """Return whether a host name or address always means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
