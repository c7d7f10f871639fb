"""Define the target, which reads settings and messages, and passes batches to the writer."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from singer_sdk import Target
from singer_sdk.exceptions import (
    InvalidRecord,
    MissingKeyPropertiesError,
    RecordsWithoutSchemaException,
    SingerSDKError,
)
from singer_sdk.helpers.capabilities import CapabilitiesEnum, PluginCapabilities, TargetCapabilities
from singer_sdk.plugin_base import PluginBase

from pepper_runtime import logs, telemetry
from pepper_runtime.cli import SIGNAL_EXIT_CODE, discard_stdout, run_cli
from pepper_runtime.plugin import Plugin
from pepper_runtime.progress import display
from pepper_runtime.settings import hide
from pepper_runtime.wording import counted
from target_crm.errors import ConnectionLost, CrmError, InputError, SettingError, WarehouseError
from target_crm.loader import malformed
from target_crm.loader.activations import SafeActivations
from target_crm.loader.batcher import Batch, Batcher
from target_crm.loader.metrics import RunMetrics
from target_crm.loader.reader import LINE_BYTES_MAX, MessageReader
from target_crm.loader.router import Router
from target_crm.loader.sinks import Activation, BatchContext, StreamSink, TableSink
from target_crm.loader.writer import BatchWriter
from target_crm.records import values
from target_crm.records.actions import Incomplete, decode_action
from target_crm.records.coverage import STREAM, claims_of
from target_crm.records.schemas import MissingProperty
from target_crm.records.tally import Rejection
from target_crm.settings import CONFIG_JSONSCHEMA, SECRETS, Settings
from target_crm.warehouse.connection import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType

    from target_crm.loader.router import StoppedStream
    from target_crm.records.coverage import Claims

# In memory, rows take up to five times the size of their input lines, and two batches may be in memory at once.
BATCH_BYTES_MAX = 24 * 1024 * 1024
# A stream with fewer records fails the run only if all of them are quarantined.
REJECTED_READ_MIN = 100
# The fields of an action that decide how it changes the sums of a balance.
_SUM_FIELDS = ("metadata", "type")
# Finds the drivers' errors about a table with too many columns.
_TOO_WIDE = re.compile("too (many|large|big|wide|long)|row size|exceeds", re.IGNORECASE)


class TargetCrm(Plugin, Target):
    """Loads Singer streams into a SQL warehouse, and computes a balance per award from Pepper's actions and awards."""

    name = "target-crm"
    package_name = "pepper-crm"
    config_jsonschema: ClassVar[dict[str, Any]] = CONFIG_JSONSCHEMA
    secrets = SECRETS
    # Errors must not show values, because the user may have put a password into the wrong setting.
    show_value = staticmethod(hide)
    setting_error = SettingError
    option_help: ClassVar[dict[str, str]] = Plugin.option_help | {
        "file_input": "Read the messages from this file instead of standard input."
    }
    capabilities: ClassVar[list[CapabilitiesEnum]] = [
        PluginCapabilities.ABOUT,
        PluginCapabilities.STREAM_MAPS,
        PluginCapabilities.ACTIVATE_VERSION,
        TargetCapabilities.SOFT_DELETE,
        TargetCapabilities.HARD_DELETE,
        PluginCapabilities.STRUCTURED_LOGGING,
    ]

    def __init__(
        self,
        *,
        warehouse: Warehouse | None = None,
        records_run: bool = True,
        on_quarantine: Callable[[Sequence[Rejection]], None] | None = None,
        **options: Any,
    ) -> None:
        """Read the settings. This does not connect to the warehouse.

        Args:
            warehouse: An open warehouse to load into. The default is the warehouse in the settings.
            records_run: Whether to write a row per stream to `load_runs`.
            on_quarantine: Called for each batch, with the records that go to the quarantine.
            options: Arguments for the SDK.
        """
        try:
            super().__init__(**options)
        except ValueError:
            raise SettingError("a TARGET_CRM_… variable is not valid JSON, e.g. TARGET_CRM_STREAM_MAPS") from None
        if self.config.get("flattening_enabled"):
            raise SettingError(
                "flattening_enabled: target-crm keeps objects as JSON, and computes balances from the object metadata"
            )
        self.settings = Settings.from_config(self.config)
        self.warehouse = warehouse or Warehouse(self.settings.url, self.settings.default_target_schema)
        self.writer = BatchWriter(
            self.warehouse,
            fail_on_conflict=self._fails_on_invalid,
            records_run=records_run,
            on_quarantine=on_quarantine,
        )
        self._batcher = Batcher(
            self.writer.stage,
            self._commit,
            self._emit_state,
            records_max=self.settings.batch_size_rows or self.warehouse.adapter.batch_size_rows,
            bytes_max=BATCH_BYTES_MAX,
            wait_seconds=self.settings.batch_wait_seconds,
        )
        self._reader = MessageReader(self._reading, self._batcher.poll, self._reject_unreadable, self._add_action)
        self.message_reader = self._reader
        self._metrics = RunMetrics()
        self.router = Router(BatchContext(self.warehouse, self.settings), self.mapper)
        self._activations = SafeActivations()
        self._undecided_activations: list[str] = []
        # The intervals that were read according to the last STATE.
        self._covered: Claims = {}
        # Stream → the number of its records that are counted as malformed lines.
        self._unreadable: Counter[str] = Counter()
        self._without_schema: Counter[str] = Counter()

    # Settings and command line.

    @classmethod
    def append_builtin_config(cls, config_jsonschema: dict[str, Any]) -> None:
        """Of the SDK's settings, add only those that this target supports: stream maps."""
        PluginBase.append_builtin_config.__func__(cls, config_jsonschema)  # type: ignore[attr-defined]

    # A run.

    def set_up(self) -> None:
        """Create the target's own tables or upgrade them, and warn if the warehouse is in memory or untested."""
        self.warehouse.check_schema()
        self.warehouse.set_up()
        schema = self.settings.default_target_schema
        self.logger.info("loading into %s%s", self.warehouse.name, f", schema {schema}" if schema else "")
        if self.warehouse.is_in_memory:
            self.logger.warning(
                "%s is an in-memory database: all data is lost when this run ends, although STATE covers the data",
                self.warehouse.name,
            )
        if not self.warehouse.tested:
            self.logger.warning("%s: target-crm is not tested on this engine", self.warehouse.name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Set up the warehouse. If the run then fails, record the failure."""
        self.set_up()
        with self._recording_failure():
            yield

    @contextmanager
    def _recording_failure(self) -> Iterator[None]:
        """Record a failure in `load_runs`, unless the warehouse itself fails."""
        try:
            yield
        except Exception as error:
            with suppress(Exception):
                self._batcher.wait()
            if not isinstance(error, ConnectionLost):
                with suppress(CrmError):
                    self.writer.fail()
            raise

    def load(self, lines: Iterable[str]) -> None:
        """Load messages, and return when they are committed. The run continues afterwards."""
        self.process_lines(io.StringIO("".join(f"{line}\n" for line in lines)))
        self._batcher.flush()
        if self._stopped:
            self._refuse_losses()

    def process_endofpipe(self) -> None:
        """Commit the last batch, emit the last STATE, and log the counts of each stream's records."""
        with self._recording_failure():
            self._batcher.flush()
            for stream, tally in self.writer.tallies.items():
                if stream or tally.read:
                    level = logging.WARNING if tally.quarantined else logging.INFO
                    self.logger.log(level, "%s: %s", stream or "malformed lines", tally)
            if differing := self.writer.differing:
                columns = ", ".join(f"{column} ({count:,})" for column, count in differing.items())
                self.logger.warning(
                    "actions: some were read again with other values in %s; the ledger keeps the old ones", columns
                )
            if unread := self.writer.unread():
                more = f" (and {counted(len(unread) - 1, 'more interval')})" if len(unread) > 1 else ""
                self.logger.warning("%s%s; crm-balances coverage shows how to read these actions", unread[0], more)
            self._metrics.finish(self.writer.tallies)
            self._refuse_losses()
            self.writer.finish()

    def _refuse_losses(self) -> None:
        """Fail if some records were not loaded, too many were quarantined, or an ACTIVATE_VERSION needs a decision."""
        problems = [
            f"stream {name!r}: did not load {counted(stopped.skipped, 'record')}: {stopped.reason}"
            for name, stopped in self._stopped.items()
        ]
        if failed := self._quarantined_streams():
            problems.append(f"quarantined {' and '.join(failed)}; see rejected_records for the reasons")
        if self._undecided_activations:
            problems.append(f"ignored ACTIVATE_VERSION of {' and '.join(self._undecided_activations)}")
        if problems:
            raise (WarehouseError if self._stopped else InputError)("; ".join(problems))

    @property
    def _stopped(self) -> dict[str, StoppedStream]:
        """The streams that are no longer loaded, because of their SCHEMA or because the warehouse rejects them."""
        return self.router.stopped | self.writer.stopped

    def _quarantined_streams(self) -> list[str]:
        """Return a phrase for each stream with too many quarantined records, such as `3 of 200 records of actions`."""
        most = self.settings.max_rejected_fraction
        if most == 1:
            return []
        read = Counter({stream: tally.read for stream, tally in self.writer.tallies.items() if stream})
        lost = Counter({stream: tally.quarantined for stream, tally in self.writer.tallies.items() if stream})
        for stream, count in (self._unreadable + self._without_schema).items():
            names = {route.sink.stream for route in self.router.routes.get(stream, [])}
            if not names and (count >= REJECTED_READ_MIN or stream in self._without_schema):
                # If only a few lines cannot be read, they may name a stream that does not exist.
                names = {stream}
            for name in names:
                read[name] += count
                lost[name] += count
        failed = [
            f"{count:,} of {counted(read[stream], 'record')} of {stream}"
            for stream, count in lost.items()
            if count and (count == read[stream] or (read[stream] >= REJECTED_READ_MIN and count > most * read[stream]))
        ]
        malformed = self.writer.tallies[""].read
        return ["all lines of the input"] if malformed and malformed == self._reader.line_number else failed

    def _commit(self, batch: Batch) -> None:
        began_seconds = time.monotonic()
        stopped = set(self.writer.stopped)
        with telemetry.span("commit", {"pepper.rows": batch.records}, is_client=True):
            self.writer.write(batch)
        for stream in self.writer.stopped.keys() - stopped:
            self._log_stop(stream, self.writer.stopped[stream].reason)
        self._metrics.count_batch(batch, time.monotonic() - began_seconds)

    def _emit_state(self, state: str) -> None:
        """Write a STATE line. If stdout is closed, continue to load. The next run then reads the same data again.

        If a stream was stopped because the warehouse rejects its rows, do not write the STATE, because it would cover
        these rows.
        """
        if self.writer.stopped:
            return
        try:
            with display.paused():
                sys.stdout.write(f"{state}\n")
                sys.stdout.flush()
        except OSError as error:
            self.logger.warning("cannot write STATE to stdout (%s); loading continues without it", error.strerror)
            discard_stdout()

    def _handle_termination(self, signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG002
        """Exit immediately. The open transaction rolls back, and every emitted STATE covers only committed data."""
        # Do not use the logger, because the signal may have interrupted it.
        message = "stopped by a signal; the next run reads the uncommitted records again"
        display.clear_in_signal_handler()
        os.write(sys.stderr.fileno(), logs.format_line(self.name, logging.WARNING, message))
        # Do not raise SystemExit, which would wait for the current commit.
        os._exit(SIGNAL_EXIT_CODE + signum)

    # Messages.

    @property
    def input_line(self) -> int:
        """The number of the input line that is being processed, from 1."""
        return self._reader.line_number

    @property
    def _fails_on_invalid(self) -> bool:
        return self.settings.on_invalid_record == "fail"

    def _process_schema_message(self, message_dict: dict[str, Any]) -> None:
        if self.router.needs_no_change(message_dict):
            return
        # Before the table changes, commit rows of the old schema, and of other streams that a map sends to this table.
        self._batcher.flush()
        for _, sink in self.router.add(message_dict, self.input_line):
            if sink.changes_balances:
                self.warehouse.set_up(balances=True)
            if isinstance(sink, TableSink):
                try:
                    self.warehouse.ensure(sink)
                except ConnectionLost:
                    raise
                except WarehouseError as error:
                    is_too_wide = error.__cause__ and _TOO_WIDE.search(str(error))
                    columns = f" ({counted(len(sink.table.columns), 'column')})" if is_too_wide else ""
                    self._stop(message_dict["stream"], f"{error}{columns}")
                    return
            self.writer.add_stream(sink.stream, sink.table.name)

    def _stop(self, stream: str, reason: str) -> None:
        """Stop loading a stream, but continue with other streams.

        Emit no more STATE, because it would cover the missing records.
        """
        for route in self.router.routes[stream]:
            self._activations.refuse_table(route.sink.stream, f"stream {stream!r} is not loaded")
        self.router.stop(stream, reason)
        self._log_stop(stream, reason)

    def _log_stop(self, stream: str, reason: str) -> None:
        self.logger.error(
            "stream %r: %s. Other streams are still loaded, but no STATE is emitted from here on", stream, reason
        )

    def _process_record_message(self, message_dict: dict[str, Any]) -> None:
        stream, record = message_dict.get("stream"), message_dict.get("record")
        if not stream or not isinstance(stream, str) or not isinstance(record, dict):
            self._reject_unreadable(values.json_text(message_dict), "the RECORD message has no stream or no record")
            return
        if stopped := self.router.stopped.get(stream):
            stopped.skipped += 1
            return
        routes = self.router.routes.get(stream)
        if routes is None:
            if self._fails_on_invalid:
                raise RecordsWithoutSchemaException(f"stream {stream!r}: a record came before its SCHEMA")
            self._activations.refuse(stream, f"line {self.input_line} came before its SCHEMA")
            self._without_schema[stream] += 1
            self._reject_line(values.json_text(message_dict), "the record came before its stream's SCHEMA")
            return
        for route in routes:
            copy = dict(record) if len(routes) > 1 else record
            mapped = route.mapped(copy, f"stream {stream!r} line {self.input_line}")
            if mapped is not None:
                self._add(route.sink, mapped, message_dict)
        if values.table_version(message_dict.get("version")) is None:
            self._activations.refuse(stream, "records of this run have no version")
        self._batcher.commit_if_due()

    def _process_state_message(self, message_dict: dict[str, Any]) -> None:
        if not isinstance(message_dict.get("value"), dict):
            self._reject_line(values.json_text(message_dict), "the STATE message has no value")
            return
        if not self.router.stopped:
            self._batcher.batch.state = values.json_text(message_dict["value"])
            self._cover(message_dict["value"])
        self._batcher.commit_if_due()

    def _cover(self, state: dict[str, Any]) -> None:
        """Add the intervals in a STATE to the batch, unless a stream map may have dropped or changed actions."""
        if self.router.loads_actions and not self.drops_data(STREAM, _SUM_FIELDS):
            claims = claims_of(state)
            # A STATE of another stream repeats the bookmark of actions. An unchanged bookmark needs no commit.
            if claims != self._covered:
                self._batcher.batch.cover(claims)
                self._covered = claims

    def _process_batch_message(self, message_dict: dict[str, Any]) -> None:
        raise InputError(f"stream {message_dict.get('stream')!r}: BATCH messages are not supported; turn batches off")

    def _process_activate_version_message(self, message_dict: dict[str, Any]) -> None:
        stream, version = message_dict.get("stream"), values.table_version(message_dict.get("version"))
        if not isinstance(stream, str) or version is None:
            self._reject_line(
                values.json_text(message_dict), "the ACTIVATE_VERSION message has no stream or no version"
            )
            return
        if stream in self.router.stopped:
            return
        if stream not in self.router.routes:
            self.logger.warning("%s: ignored ACTIVATE_VERSION: the stream has no SCHEMA in this run", stream)
            return
        self._batcher.flush()
        for _, sink in self.router.routes[stream]:
            unsafe = self._why_unsafe(sink, stream, version)
            activation = Activation(ignored=unsafe) if unsafe else self.writer.activate(sink, version)
            if activation.ignored:
                self.logger.warning(
                    "%s: ignored ACTIVATE_VERSION, nothing is deleted: %s", sink.stream, activation.ignored
                )
                self.writer.count_ignored_activation(sink.stream)
            else:
                self._activations.done(sink.stream, stream, version)
                level = logging.INFO if activation.deleted else logging.DEBUG
                lacking = counted(activation.deleted, "row")
                self.logger.log(
                    level, "%s: version %d is complete; deleted or marked as deleted: %s", sink.stream, version, lacking
                )
            if activation.needs_decision:
                self._undecided_activations.append(f"{sink.stream}: {activation.ignored}")

    def _why_unsafe(self, sink: StreamSink, stream: str, version: int) -> str:
        """Return why a version may lack rows that this run has received for a sink's table.

        Return an empty string if the version has all of these rows.
        """
        sources = [
            name
            for name, routes in self.router.routes.items()
            if any(route.sink.stream == sink.stream for route in routes)
        ]
        refused = self.writer.refused.get(sink.stream)
        return refused or self._activations.why_unsafe(sink.stream, stream, sources, version)

    # Records.

    def _batch_for_record(self) -> Batch:
        """Count a record, and return the current batch."""
        batch = self._batcher.batch
        batch.count_record(self._reader.line_bytes)
        return batch

    def _add_action(self, line: bytes) -> bool:
        """Add an action to which no stream map applies. Return whether the line is a valid action."""
        sink = self.router.actions_sink
        row = decode_action(line) if sink else None
        if not (sink and row):
            return False
        batch = self._batch_for_record()
        batch.part_of(sink).rows.append((self.input_line, *row, batch.loaded_at))
        self._batcher.commit_if_due()
        return True

    def _add(self, sink: StreamSink, record: dict[str, Any], message: dict[str, Any]) -> None:
        batch = self._batch_for_record()
        part = batch.part_of(sink)
        version = values.table_version(message.get("version"))
        if version is not None:
            self._activations.add(sink.stream, message["stream"], version)
        try:
            row = sink.row(record, message, batch.loaded_at)
        except values.Invalid as reason:
            extracted_at = values.optional(message.get("time_extracted"), values.instant)
            # The reason may contain stream and property names, which also come from the input.
            rejection = Rejection(
                values.without_nul(sink.stream),
                values.without_nul(str(reason)),
                self.input_line,
                values.json_text(record),
                extracted_at,
            )
            if isinstance(reason, Incomplete):
                part.incomplete.append(((self.input_line, *reason.columns), rejection))
                return
            part.refused += 1
            self._reject(rejection, MissingKeyPropertiesError if isinstance(reason, MissingProperty) else InvalidRecord)
            present_keys = sink.present_keys(record, message)
            part.present_keys += [(self.input_line, *key) for key in present_keys]
            if not present_keys:
                # Without the key, it is unknown which row still exists in the source. So delete no row.
                self._activations.refuse(message["stream"], f"line {self.input_line} was quarantined")
        else:
            part.rows.append((self.input_line, *row))

    def _reject_unreadable(self, line: str, reason: str) -> None:
        """Quarantine a line that may be a record. Because its key is unknown, no row of its stream may be deleted.

        Raises:
            InputError: The line is a SCHEMA message. Without it, no record of the stream can be loaded.
        """
        message = malformed.decode_leniently(line)
        streams = [] if self._reader.line_bytes > LINE_BYTES_MAX else malformed.stream_names(line, message)
        if malformed.is_schema(line, message):
            self._batcher.flush()
            of_stream = f" (stream {streams[0]!r})" if streams else ""
            raise InputError(f"line {self.input_line}: a SCHEMA message that cannot be read{of_stream}: {reason}")
        # If the line names no stream, it may belong to any stream.
        unsafe = streams if message or malformed.names_its_stream_first(line) else [""]
        for stream in unsafe or [""]:
            self._activations.refuse(stream, f"line {self.input_line} could not be read")
        self._unreadable.update(streams)
        self._reject_line(line, reason)

    def _reject_line(self, line: str, reason: str) -> None:
        """Quarantine a line that cannot be used."""
        self._batch_for_record()
        self._reject(Rejection("", reason, self.input_line, line), InvalidRecord)
        self._batcher.commit_if_due()

    def _reject(self, rejection: Rejection, error: type[InvalidRecord | MissingKeyPropertiesError]) -> None:
        """Quarantine a record. With `on_invalid_record: fail`, end the run instead."""
        if self._fails_on_invalid:
            raise error(rejection.where, {})
        self._batcher.batch.rejections.append(rejection)


def main() -> NoReturn:
    """Run the command `target-crm`."""
    run_cli(TargetCrm.name, lambda: TargetCrm.cli, expected=(CrmError, SingerSDKError))
