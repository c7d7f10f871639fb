"""The target itself: it gives each stream its sink, and decides when a batch is committed and a STATE is true."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, cast

from singer_sdk import Target
from singer_sdk.exceptions import (
    InvalidRecord,
    MissingKeyPropertiesError,
    RecordsWithoutSchemaException,
    SingerSDKError,
)
from singer_sdk.helpers.capabilities import CapabilitiesEnum, PluginCapabilities, TargetCapabilities
from singer_sdk.mapper import CustomStreamMap, RemoveRecordTransform, SameRecordTransform, StreamMap
from singer_sdk.plugin_base import JSONSchemaValidator, PluginBase

from pepper_runtime import logs, telemetry
from pepper_runtime.cli import SIGNAL_EXIT_CODE, discard_stdout, run_cli
from pepper_runtime.config import read_config
from pepper_runtime.progress import display
from target_crm.engines.base import binding
from target_crm.errors import ConnectionLost, CrmError, InputError, SettingError
from target_crm.loader.metrics import Measure, log_tally, measured
from target_crm.loader.reader import MessageReader, without_nul
from target_crm.loader.sinks import (
    AwardSink,
    CrmSink,
    Held,
    LedgerSink,
    TableSink,
    Ticker,
    insert_absent,
    unstage,
)
from target_crm.records import values
from target_crm.records.fast_path import plain_row
from target_crm.records.schemas import MissingProperty, snake_case
from target_crm.records.tally import Rejection, Tally
from target_crm.settings import SETTINGS, Settings, expectation, refuse_malformed
from target_crm.sql.load_runs import DONE, FAILED, Run
from target_crm.sql.tables import WORK_PREFIX
from target_crm.warehouse.connection import Warehouse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future
    from types import FrameType

    import click
    from sqlalchemy import Connection

# Rows are held as Python objects, up to five times the size of their lines; and two batches may be in memory.
HELD_BYTES_MAX = 20 * 1024 * 1024


class Route(NamedTuple):
    """One of the ways that a stream's records take: through a map, into a sink."""

    map: StreamMap
    sink: CrmSink


class Batch(NamedTuple):
    """What is committed at once: what each sink held, and what else was refused; and the STATE that is true then."""

    parts: list[tuple[CrmSink, Held]]
    rejections: list[Rejection]
    state: str | None

    @property
    def read(self) -> int:
        """How many records the sinks held."""
        return sum(held.read for _, held in self.parts)


class TargetCrm(Target):
    """Singer streams into a SQL warehouse, and Pepper's loyalty actions into a balance per award."""

    name = "target-crm"
    package_name = "pepper-crm"
    config_jsonschema: ClassVar[dict[str, Any]] = SETTINGS.to_dict()
    capabilities: ClassVar[list[CapabilitiesEnum]] = [
        PluginCapabilities.ABOUT,
        PluginCapabilities.STREAM_MAPS,
        PluginCapabilities.ACTIVATE_VERSION,
        TargetCapabilities.SOFT_DELETE,
        TargetCapabilities.HARD_DELETE,
        PluginCapabilities.STRUCTURED_LOGGING,
    ]
    default_sink_class = TableSink

    def __init__(self, **options: Any) -> None:
        if options.get("parse_env_config"):
            refuse_malformed(os.environ)
        try:
            super().__init__(**options)
        except ValueError:
            raise SettingError("a TARGET_CRM_… variable that takes JSON, such as stream_maps, holds none") from None
        if self.config.get("flattening_enabled"):
            raise SettingError("flattening_enabled: target-crm keeps objects as JSON; flatten in the tap if you must")
        self.settings = Settings.of(self.config)
        self._warehouse = Warehouse(self.settings.sqlalchemy_url, self.settings.default_target_schema)
        self.run_id = uuid.uuid4().hex
        self.started_at = datetime.now(timezone.utc)
        self.tallies: dict[str, Tally] = {}
        self.newest_at: datetime | None = None
        self.batch_began_at = datetime.now(timezone.utc)
        self.tick = Ticker().tick
        self._reader = MessageReader(self._idle, self._reject_line, self._tell_failure, self._take_plain)
        self.message_reader = self._reader
        self._rejections: list[Rejection] = []
        self._state: str | None = None
        self._emitted_state: str | None = None
        self._shapes: dict[str, tuple[Any, Any]] = {}
        self._routes: dict[str, list[Route]] = {}
        self._plain_sink: CrmSink | None = None
        self._rows_held = 0
        self._bytes_held = 0
        self._due_at_seconds: float | None = None
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._under_way: Future[None] | None = None

    @classmethod
    def append_builtin_config(cls, config_jsonschema: dict[str, Any]) -> None:
        """Only the SDK's settings that this target honours: those of stream maps."""
        PluginBase.append_builtin_config.__func__(cls, config_jsonschema)  # type: ignore[attr-defined]

    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        """Check the settings, in words that repeat no value: it may be a secret."""
        self.append_builtin_config(self.config_jsonschema)
        if self._config.get("stream_maps") is None:
            self._config.pop("stream_maps", None)
        try:
            problems = [
                expectation(".".join(map(str, error.path)) or "config", error.validator, error.validator_value)
                for error in JSONSchemaValidator(self.config_jsonschema).iter_errors(self._config)
            ]
        except AttributeError:
            # What the SDK says of it is no JSON Schema, which shows where the value is not allowed.
            problems = ["stream_maps: __else__ may be null or __NULL__ only"]
        if problems and raise_errors:
            raise SettingError("; ".join(problems))
        return problems

    @classmethod
    def get_singer_command(cls) -> click.Command:
        """The command, with `--log-format`."""
        return logs.add_option(super().get_singer_command())

    @classmethod
    def cb_config(cls, ctx: Any, param: Any, value: tuple[str, ...]) -> Any:
        """Read the files named by `--config`; each may also be the word ENV."""
        for path in value:
            if path != "ENV":
                read_config(path)
        return super().cb_config(ctx, param, value)

    @cached_property
    def warehouse(self) -> Warehouse:
        """The warehouse, with the target's own tables in place."""
        self._warehouse.set_up()
        if self._warehouse.is_in_memory:
            self.logger.warning(
                "%s: in memory; all is gone when this run ends, also what its STATE covers", self._warehouse.name
            )
        if not self._warehouse.tested:
            self.logger.warning("%s: target-crm is not tested on this engine", self._warehouse.name)
        return self._warehouse

    def get_sink_class(self, stream_name: str) -> type[CrmSink]:
        """The sink of a stream: the ledger's for `actions`, the snapshots' for `awards`, else a table of its own."""
        table = snake_case(stream_name)
        special = {"actions": LedgerSink, "awards": AwardSink}.get(stream_name)
        if special:
            return special
        if table in self.warehouse.tables.reserved_names or table.startswith(WORK_PREFIX):
            raise InputError(f"stream {stream_name!r}: table {table!r} is the target's own; rename the stream by a map")
        twin = next((name for name in self._sinks_active if snake_case(name) == table and name != stream_name), None)
        if twin:
            raise InputError(f"streams {twin!r} and {stream_name!r} would share table {table!r}; rename one by a map")
        return TableSink

    @property
    def input_line(self) -> int:
        """The number of the line that is being read, from 1."""
        return self._reader.line_number

    @property
    def _sinks(self) -> list[CrmSink]:
        """Each sink once; streams of one shape that maps join share one."""
        return list(dict.fromkeys(route.sink for routes in self._routes.values() for route in routes))

    def reject(
        self, stream: str, reason: values.Invalid | str, payload: str, extracted_at: datetime | None = None
    ) -> None:
        """Put a record aside for the quarantine, or stop where the settings say so."""
        # Names of streams and of properties are the sender's too.
        stream, words = without_nul(stream), without_nul(str(reason))
        rejection = Rejection(stream, words, self.input_line, payload, extracted_at)
        if self.settings.on_invalid_record == "fail":
            missing = isinstance(reason, MissingProperty)
            raise (MissingKeyPropertiesError if missing else InvalidRecord)(rejection.where, {})
        self._rejections.append(rejection)

    def _reject_line(self, line: str, reason: str) -> None:
        self._hold()
        self.reject("", reason, line)
        self._drain_when_due()

    def _process_schema_message(self, message_dict: dict[str, Any]) -> None:
        stream, schema = message_dict.get("stream"), message_dict.get("schema")
        if (
            not isinstance(stream, str)
            or not stream
            or not isinstance(schema, dict)
            or not isinstance(schema.get("properties"), dict)
            or not isinstance(message_dict.get("key_properties", []), list | None)
        ):
            raise InputError(
                f"line {self.input_line}: a SCHEMA message needs a stream, schema.properties and a list of keys"
            )
        shape = (schema, message_dict.get("key_properties"))
        if self._shapes.get(stream) == shape:
            return
        # Rows of an older schema, or of another stream mapped to the same table, land before it takes a new shape.
        self._drain()
        try:
            self._routes[stream] = self._routes_of(stream, *shape)
        except RecursionError:
            raise InputError(f"stream {stream!r}: its SCHEMA message is nested too deeply") from None
        self._shapes[stream] = shape
        routes = self._routes.get("actions", [])
        is_unmapped = [type(route.map) for route in routes] == [SameRecordTransform]
        self._plain_sink = routes[0].sink if is_unmapped else None

    def _take_plain(self, line: bytes) -> bool:
        """Hold an action that is plain to read; whether the line was one. All others go the general way."""
        sink = self._plain_sink
        row = plain_row(line) if sink else None
        if not (sink and row):
            return False
        self._hold()
        sink.held.rows.append((self.input_line, *row, self.batch_began_at))
        self._drain_when_due()
        return True

    def _routes_of(self, stream: str, schema: dict[str, Any], keys: list[str] | None) -> list[Route]:
        """Where a stream's records go: streams that maps join into one table have a sink each, of their own shape."""
        self.mapper.register_raw_stream_schema(stream, schema, keys)
        maps = [each for each in self.mapper.stream_maps[stream] if not isinstance(each, RemoveRecordTransform)]
        return [
            Route(
                each,
                cast(
                    "CrmSink",
                    self.get_sink(
                        each.stream_alias,
                        schema=each.transformed_schema,
                        key_properties=each.transformed_key_properties,
                    ),
                ),
            )
            for each in maps
        ]

    def _process_record_message(self, message_dict: dict[str, Any]) -> None:
        stream, record = message_dict.get("stream"), message_dict.get("record")
        if not isinstance(stream, str) or not isinstance(record, dict):
            self._reject_line(values.json_text(message_dict), "the RECORD message has no stream or no record")
            return
        routes = self._routes.get(stream)
        if routes is None:
            if self.settings.on_invalid_record == "fail":
                raise RecordsWithoutSchemaException(f"stream {stream!r}: a record came before its SCHEMA")
            self._reject_line(values.json_text(message_dict), "the record came before its stream's SCHEMA")
            return
        for stream_map, sink in routes:
            try:
                mapped = stream_map.transform(dict(record) if len(routes) > 1 else record)
                if isinstance(stream_map, CustomStreamMap) and mapped is not None:
                    # An expression may give a float or a time: what counts is how it reads as JSON.
                    mapped = values.from_json(values.json_text(mapped))
            except Exception as error:
                # Not to the quarantine: what the map was to hide would stand there.
                reason = error if isinstance(error, SingerSDKError) else type(error).__name__
                raise InputError(f"stream {stream!r} line {self.input_line}: a stream map fails: {reason}") from error
            if mapped is not None:
                self._hold()
                sink.accept(mapped, message_dict)
        self._drain_when_due()

    def _process_state_message(self, message_dict: dict[str, Any]) -> None:
        if not isinstance(message_dict.get("value"), dict):
            self._reject_line(values.json_text(message_dict), "the STATE message has no value")
            return
        self._state = values.json_text(message_dict["value"])
        self._start_clock()
        self._drain_when_due()

    def _process_batch_message(self, message_dict: dict[str, Any]) -> None:
        raise InputError(f"stream {message_dict.get('stream')!r}: BATCH messages are not supported; turn batches off")

    def _process_activate_version_message(self, message_dict: dict[str, Any]) -> None:
        stream, version = message_dict.get("stream"), _version_of(message_dict)
        routes = self._routes.get(stream) if isinstance(stream, str) else None
        if routes is None or version is None:
            self._reject_line(values.json_text(message_dict), "the ACTIVATE_VERSION has no known stream or no version")
            return
        self._drain()
        for route in routes:
            self._activate(route.sink, version)

    def _activate(self, sink: CrmSink, version: int) -> None:
        gone: list[int | None] = []
        self.warehouse.commit_once(lambda connection: gone.append(sink.activate(connection, version)))
        if gone[-1] is None:
            self.logger.warning("%s: ACTIVATE_VERSION is refused, the ledger keeps every action", sink.stream_name)
        else:
            self.logger.info("%s: version %d is active, %d rows are gone", sink.stream_name, version, gone[-1])

    def process_endofpipe(self) -> None:
        """Commit what is left, emit the last STATE, and say what became of every record."""
        try:
            self._drain()
            # Also where nothing came: the exit code says that a run can load.
            self.warehouse.commit_once(lambda connection: self._tell(connection, self.tallies, DONE))
        except Exception as error:
            self._tell_failure(error)
            raise
        for sink in self._sinks:
            sink.clean_up()
        for stream, tally in self.tallies.items():
            self.logger.info("%s: %s", stream or "not a stream", tally)
            log_tally(tally, stream)
        if self.newest_at:
            measured(Measure.LAG, (datetime.now(timezone.utc) - self.newest_at).total_seconds(), "actions")

    def _hold(self) -> None:
        """Make room for one more row; the first begins a batch."""
        # Wait while rows of the batch before are bound.
        with binding:
            pass
        if not self._rows_held:
            self.batch_began_at = datetime.now(timezone.utc)
        self._rows_held += 1
        self._bytes_held += self._reader.line_bytes
        self._start_clock()

    def _start_clock(self) -> None:
        if self._due_at_seconds is None:
            self._due_at_seconds = time.monotonic() + self.settings.batch_wait_seconds

    def _drain_when_due(self) -> None:
        full = self._rows_held >= self.settings.batch_size_rows or self._bytes_held >= HELD_BYTES_MAX
        if full or (self._due_at_seconds is not None and time.monotonic() >= self._due_at_seconds):
            self._hand_over()

    def _idle(self) -> None:
        if self._under_way and self._under_way.done():
            self._finish()
        self._drain_when_due()

    def _drain(self) -> None:
        """Commit all that is held, and come back when that is done."""
        self._hand_over()
        self._finish()

    def _hand_over(self) -> None:
        """Have all that is held committed while reading goes on; but first let the batch before it come to its end."""
        self._finish()
        batch = Batch([(sink, sink.hand_over()) for sink in self._sinks], self._rejections, self._state)
        if self._rows_held or batch.state is not None:
            self._under_way = self._committer.submit(self._commit, batch)
        if self._rows_held:
            telemetry.record_span("decode", self.batch_began_at, {"pepper.rows": self._rows_held})
        self._rejections, self._state = [], None
        self._rows_held = self._bytes_held = 0
        self._due_at_seconds = None

    def _finish(self) -> None:
        """Wait for the batch that is under way; what went wrong with it is raised here."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()

    def _commit(self, batch: Batch) -> None:
        """Commit a batch in one transaction, then let its STATE out: it covers nothing else."""
        if batch.rejections or batch.read:
            tallies: dict[str, Tally] = {}
            began_seconds = time.monotonic()
            with telemetry.span("commit", {"pepper.rows": batch.read}, is_client=True):
                self.warehouse.commit_once(lambda connection: tallies.update(self._flush(connection, batch)))
            self.tallies = tallies
            self._show(batch, time.monotonic() - began_seconds)
            for sink, held in batch.parts:
                sink.record_counter_metric.increment(held.read)
        if batch.state is not None and batch.state != self._emitted_state:
            self._emit(batch.state)
            self._emitted_state = batch.state

    def _show(self, batch: Batch, seconds: float) -> None:
        """Show those who watch what was committed, and in how many seconds."""
        measured(Measure.BATCH, seconds)
        newest = [at for sink, held in batch.parts if (at := sink.newest_at(held))]
        self.newest_at = max([*newest, *filter(None, [self.newest_at])], default=None)
        display.advance(batch.read)
        if self.newest_at:
            lag = datetime.now(timezone.utc) - self.newest_at
            display.update(f"{lag - lag % timedelta(seconds=1)} behind")

    def _flush(self, connection: Connection, batch: Batch) -> dict[str, Tally]:
        """Write a batch; returns what has become of every record once that is committed."""
        tallies, lines = dict(self.tallies), sum(not rejection.stream for rejection in batch.rejections)
        news = {"": Tally(read=lines, quarantined=lines)}
        contradictions: list[Rejection] = []
        for sink, held in batch.parts:
            flushed = sink.flush(connection, held)
            news[sink.stream_name] = news.get(sink.stream_name, Tally()) + flushed.tally
            contradictions += flushed.contradictions
        if contradictions and self.settings.on_invalid_record == "fail":
            raise InvalidRecord(contradictions[0].where, {})
        tallies |= {stream: tallies.get(stream, Tally()) + tally for stream, tally in news.items() if tally.read}
        self._quarantine(connection, [*batch.rejections, *contradictions])
        self._tell(connection, tallies)
        return tallies

    def _quarantine(self, connection: Connection, rejections: list[Rejection]) -> None:
        if rejections:
            tables, now = self.warehouse.tables, datetime.now(timezone.utc)
            rows = [(place, *rejection.row(now, self.run_id)) for place, rejection in enumerate(rejections)]
            insert_absent(self.warehouse.adapter, connection, tables.rejected_records, tables.staged_rejections, rows)
            unstage(self.warehouse.adapter, connection, tables.staged_rejections)

    def _emit(self, state: str) -> None:
        """Let a STATE out. If nobody takes it, what it covers is loaded all the same, and is read again next time."""
        try:
            with display.paused():
                sys.stdout.write(f"{state}\n")
                sys.stdout.flush()
        except OSError as error:
            self.logger.warning("nobody takes the STATE (%s); loading goes on without", error.strerror)
            discard_stdout()

    def _tell(self, connection: Connection, tallies: Mapping[str, Tally], exit_state: str | None = None) -> None:
        """Let `load_runs` say what is committed once this transaction is."""
        run = Run(self.run_id, self.started_at, datetime.now(timezone.utc), exit_state)
        load_runs = self.warehouse.tables.load_runs
        self.warehouse.adapter.execute(connection, run.outdated(load_runs))
        silent = dict.fromkeys(("", *(sink.stream_name for sink in self._sinks)), Tally())
        self.warehouse.adapter.load(connection, load_runs, run.rows({**silent, **tallies}))
        if exit_state:
            self.warehouse.adapter.execute(connection, run.forgotten(load_runs))

    def _tell_failure(self, error: Exception) -> None:
        """Let `load_runs` say that the run failed, where the warehouse still takes that: what counts is the error."""
        with suppress(Exception):
            self._finish()
        if "warehouse" in vars(self) and not isinstance(error, ConnectionLost):
            with suppress(CrmError), self.warehouse.write() as connection:
                self._tell(connection, self.tallies, FAILED)

    def _handle_termination(self, signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG002
        """Leave at once: an open transaction rolls back, and STATE has gone out for what is committed, no further."""
        # Not by the logger: the signal may have come while it was writing.
        words = "stopped by a signal; what is not committed will be read again"
        display.clear_in_signal_handler()
        os.write(sys.stderr.fileno(), logs.format_line(self.name, logging.WARNING, words))
        # Nor by SystemExit, which would wait for the batch that is under way.
        os._exit(SIGNAL_EXIT_CODE + signum)


def _version_of(message: dict[str, Any]) -> int | None:
    try:
        return values.integer(message.get("version"))
    except values.Invalid:
        return None


def main() -> NoReturn:
    """Run the console script."""
    run_cli(TargetCrm.name, lambda: TargetCrm.cli, expected=(CrmError, SingerSDKError))
