"""The target's settings: declared once for target-crm and crm-balances."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from singer_sdk import typing as th
from sqlalchemy.engine import URL

from pepper_runtime.logs import SETTING
from target_crm.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_URL = "sqlite:///crm.db"
_PARTS = ("dialect", "host", "port", "user", "password", "database", "options")
_BOOLEANS = {"true", "1", "yes", "on", "false", "0", "no", "off"}

SETTINGS = th.PropertiesList(
    th.Property(
        "sqlalchemy_url",
        th.StringType(),
        secret=True,
        title="SQLAlchemy URL",
        description=(
            "The warehouse, as a SQLAlchemy URL. `postgresql://` uses psycopg (extra `postgres`). Where neither it nor "
            "`dialect` is given, it is `sqlite:///crm.db`."
        ),
        examples=["sqlite:///crm.db", "postgresql://loader:secret@localhost:5432/crm"],
    ),
    th.Property(
        "dialect",
        th.StringType(),
        title="Dialect",
        description="The kind of warehouse, where its address is given in parts instead of as a URL.",
        examples=["postgresql", "sqlite"],
    ),
    th.Property("host", th.StringType(), title="Host", description="The warehouse's host."),
    th.Property(
        "port", th.IntegerType(minimum=1, maximum=65_535), title="Port", description="Its port. Empty: the usual one."
    ),
    th.Property("user", th.StringType(), title="User", description="Who loads."),
    th.Property(
        "password", th.StringType(), secret=True, title="Password", description="Their password, as it is: unescaped."
    ),
    th.Property("database", th.StringType(), title="Database", description="The database's name, or SQLite's file."),
    th.Property(
        "options",
        th.ObjectType(additional_properties=th.StringType()),
        title="Options",
        description="What the driver has to know besides, such as where the key and the certificates for TLS are.",
        examples=[{"sslmode": "verify-full", "sslrootcert": "/etc/ssl/warehouse.pem"}],
    ),
    th.Property(
        "default_target_schema",
        th.StringType(),
        title="Target schema",
        description="The schema for all tables, created when missing. Empty: the connection's own. SQLite has none.",
    ),
    th.Property(
        "batch_size_rows",
        th.IntegerType(minimum=1, maximum=1_000_000),
        default=20_000,
        title="Batch size in rows",
        description="Rows of all streams together that are held in memory before they are committed.",
    ),
    th.Property(
        "batch_wait_seconds",
        th.IntegerType(minimum=0, maximum=3600),
        default=30,
        title="Batch wait in seconds",
        description="The longest time that a row waits in memory before it is committed.",
    ),
    th.Property(
        "on_invalid_record",
        th.StringType(),
        default="quarantine",
        allowed_values=["quarantine", "fail"],
        title="On an invalid record",
        description="`quarantine` keeps it in `rejected_records` with the reason and goes on; `fail` stops the run.",
    ),
    th.Property(
        "hard_delete",
        th.BooleanType(),
        default=False,
        title="Hard delete",
        description="Delete rows that a full-table stream no longer has, instead of setting their `_sdc_deleted_at`.",
    ),
    th.Property(
        "store_payload",
        th.BooleanType(),
        default=True,
        title="Store the payload",
        description="Keep each action's whole JSON in the ledger's `payload`.",
    ),
    SETTING,
)


@dataclass(frozen=True)
class Settings:
    """The settings in force."""

    sqlalchemy_url: str
    default_target_schema: str | None
    batch_size_rows: int
    batch_wait_seconds: int
    on_invalid_record: str
    hard_delete: bool
    store_payload: bool
    log_format: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """Read a validated config; null means the default, and so does an empty schema.

        Raises:
            SettingError: the warehouse's address is given twice, or in parts without a dialect.
        """
        values = {
            name: definition.get("default") if config.get(name) is None else config[name]
            for name, definition in SETTINGS.to_dict()["properties"].items()
        }
        parts = {name: values.pop(name) for name in _PARTS}
        schema = values["default_target_schema"] or None
        return cls(
            **{**values, "default_target_schema": schema, "sqlalchemy_url": _url(values["sqlalchemy_url"], parts)}
        )


def _url(sqlalchemy_url: str | None, parts: Mapping[str, Any]) -> str:
    given = [name for name, value in parts.items() if value not in (None, "", {})]
    if not given:
        return sqlalchemy_url or _DEFAULT_URL
    if sqlalchemy_url:
        raise SettingError(f"sqlalchemy_url: says where the warehouse is, and so do {', '.join(given)}; leave out one")
    if "dialect" not in given:
        raise SettingError(f"dialect: expected beside {', '.join(given)}, e.g. postgresql")
    try:
        url = URL.create(
            parts["dialect"],
            username=parts["user"] or None,
            password=parts["password"] or None,
            host=parts["host"] or None,
            port=parts["port"],
            database=parts["database"] or None,
            query=parts["options"] or {},
        )
    except TypeError:
        raise SettingError("options: expected texts") from None
    return url.render_as_string(hide_password=False)


def expectation(name: str, rule: str, value: Any) -> str:
    """What a setting has to be, in words, where it breaks a rule of its JSON Schema. Its value may be a secret."""
    if rule == "type":
        names = [value] if isinstance(value, str) else [each for each in value if each != "null"]
        return f"{name}: expected {' or '.join({'string': 'text'}.get(each, each) for each in names)}"
    if rule == "enum":
        return f"{name}: expected one of {', '.join(str(each) for each in value if each is not None)}"
    if rule in {"minimum", "maximum"}:
        return f"{name}: expected {'at least' if rule == 'minimum' else 'at most'} {value}"
    return f"{name}: malformed; target-crm --about tells what it may be"


def refuse_malformed(environment: Mapping[str, str]) -> None:
    """Refuse variables that the SDK would take for something else: a number that is none, a "maybe" for false.

    Raises:
        SettingError: names the variable and what it has to be.
    """
    for name, definition in SETTINGS.to_dict()["properties"].items():
        text = environment.get(f"TARGET_CRM_{name.upper()}")
        if text is None:
            continue
        if "integer" in definition["type"] and not re.fullmatch(r"[+-]?\d+", text):
            raise SettingError(f"TARGET_CRM_{name.upper()}: expected a whole number")
        if "boolean" in definition["type"] and text.lower() not in _BOOLEANS:
            raise SettingError(f"TARGET_CRM_{name.upper()}: expected true or false")
