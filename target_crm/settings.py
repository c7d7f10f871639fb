"""The settings of target-crm and crm-balances."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL

from pepper_runtime.logs import log_format_setting
from pepper_runtime.settings import config_schema, secret_names, setting
from target_crm.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX = "TARGET_CRM_"
DEFAULT_URL = "sqlite:///crm.db"
URL_PARTS = ("dialect", "host", "port", "user", "password", "database", "options")


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `CONFIG_JSONSCHEMA` and the documentation are generated from these declarations."""

    sqlalchemy_url: str | None = setting(
        "SQLAlchemy URL",
        "The warehouse, as a SQLAlchemy URL. A `postgresql://` URL uses the driver psycopg (extra `postgres`). If "
        "neither this setting nor `dialect` is set, the warehouse is `sqlite:///crm.db`.",
        default=None,
        examples=["sqlite:///crm.db", "postgresql://loader:secret@localhost:5432/crm"],
        secret=True,
    )
    dialect: str | None = setting(
        "Dialect",
        "The kind of warehouse, if you give its address in parts instead of a URL.",
        default=None,
        examples=["postgresql", "sqlite"],
    )
    host: str | None = setting("Host", "The warehouse's host.", default=None)
    port: int | None = setting(
        "Port", "The warehouse's port, by default the engine's usual port.", default=None, minimum=1, maximum=65_535
    )
    user: str | None = setting("User", "Database user.", default=None)
    password: str | None = setting("Password", "Database password (do not URL-encode it).", default=None, secret=True)
    database: str | None = setting(
        "Database", "The name of the database. On SQLite and DuckDB, the path of the file.", default=None
    )
    options: Mapping[str, str] | None = setting(
        "Options",
        "Additional driver options, such as the key and certificates for TLS.",
        default=None,
        examples=[{"sslmode": "verify-full", "sslrootcert": "/etc/ssl/warehouse.pem"}],
    )
    default_target_schema: str | None = setting(
        "Target schema",
        "The schema of all tables, by default the connection's default schema. The target creates the schema if it is "
        "missing. SQLite has no schemas.",
        default=None,
    )
    batch_size_rows: int | None = setting(
        "Batch size in rows",
        "Commit after this many records, counted over all streams, or after 24 MiB of input. The default is 10,000, or "
        "20,000 on DuckDB.",
        default=None,
        minimum=1,
        maximum=1_000_000,
    )
    batch_wait_seconds: int = setting(
        "Batch wait in seconds",
        "Commit a batch at most this many seconds after its first record.",
        default=30,
        minimum=0,
        maximum=3600,
    )
    on_invalid_record: str = setting(
        "On an invalid record",
        "`quarantine` keeps an invalid record in `rejected_records` with the reason, and continues; "
        "`fail` stops the run.",
        default="quarantine",
        choices=["quarantine", "fail"],
    )
    max_rejected_fraction: float = setting(
        "Maximum fraction of rejected records",
        "End with exit code 1 if more than this fraction of a stream's records were quarantined. A stream with fewer "
        "than 100 records fails this check only if all of its records were quarantined. 1 turns the check off. Valid "
        "records are loaded in any case.",
        default=0.1,
        minimum=0,
        maximum=1,
    )
    max_deleted_fraction: float = setting(
        "Maximum fraction of rows deleted without a version",
        "Ignore an ACTIVATE_VERSION message, and end with exit code 1, if it would mark or delete more than this "
        "fraction of a table's rows because they have no version yet. To let the target mark or delete these rows, "
        "raise this setting for one run.",
        default=0.5,
        minimum=0,
        maximum=1,
    )
    hard_delete: bool = setting(
        "Hard delete",
        "Delete rows that were deleted in the source, or that a complete read no longer contains, instead of setting "
        "their `_sdc_deleted_at`. Deleted awards are only marked.",
        default=False,
    )
    allow_key_change: bool = setting(
        "Allow a key change",
        "Rebuild a stream's table if its key properties have changed. If several rows have the same new key, only the "
        "newest one is kept. Without this setting, a stream with a changed key is not loaded.",
        default=False,
    )
    store_payload: bool = setting(
        "Store the payload", "Keep each action's whole JSON in the ledger's column `payload`.", default=True
    )
    log_format: str = log_format_setting()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read a validated config. A setting that is null or an empty string gets its default."""
        given = {each.name: config.get(each.name) for each in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value not in (None, "")})

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the warehouse, with its password.

        Raises:
            SettingError: The settings give the address twice, or in parts without a dialect.
        """
        parts = {name: getattr(self, name) for name in URL_PARTS}
        given = [name for name, value in parts.items() if value]
        if not given:
            return self.sqlalchemy_url or DEFAULT_URL
        if self.sqlalchemy_url:
            raise SettingError(
                f"sqlalchemy_url and {', '.join(given)} both set the warehouse's address; use one of them"
            )
        if not self.dialect:
            raise SettingError(
                f"dialect is missing; set it, e.g. to postgresql, or use sqlalchemy_url instead of {', '.join(given)}"
            )
        url = URL.create(
            self.dialect,
            username=self.user,
            password=self.password,
            host=self.host,
            port=self.port,
            database=self.database,
            query=self.options or {},
        )
        return url.render_as_string(hide_password=False)


CONFIG_JSONSCHEMA: dict[str, Any] = config_schema(Settings)
# Driver options may also hold secrets.
SECRETS = secret_names(Settings) | {"options"}
