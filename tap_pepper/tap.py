"""Define the tap: its settings, its streams and its command line."""

from __future__ import annotations

import io
import json
import logging
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast
from urllib.parse import urlsplit

from singer_sdk import Tap
from singer_sdk.exceptions import SingerSDKError
from singer_sdk.helpers.capabilities import CapabilitiesEnum, PluginCapabilities, TapCapabilities
from singer_sdk.singerlib import Catalog
from singer_sdk.singerlib.catalog import REPLICATION_FULL_TABLE
from singer_sdk.tap_base import CliTestOptionValue

from pepper_runtime.cli import SIGNAL_EXIT_CODE, run_cli
from pepper_runtime.config import parse_object
from pepper_runtime.plugin import Plugin
from pepper_runtime.wording import counted
from tap_pepper.api.client import PepperClient
from tap_pepper.catalog import complete_selection
from tap_pepper.errors import ConfigError, FatalRunError, PepperError, StreamsFailed
from tap_pepper.messages import MessageWriter
from tap_pepper.raw_json import digest
from tap_pepper.redaction import redact_in_logs
from tap_pepper.run_context import ACTIONS_SHARE, RunContext, TimeLimit, UpperBound
from tap_pepper.settings import (
    CONFIG_JSONSCHEMA,
    PACKAGE,
    SECRETS,
    Settings,
    find_problems,
)
from tap_pepper.state import coverage
from tap_pepper.state.input_state import read_bookmarks
from tap_pepper.streams import STREAMS

if TYPE_CHECKING:
    from types import FrameType
    from typing import IO

    import click
    from singer_sdk.plugin_base import _ConfigInput

    from tap_pepper.base_stream import PepperStream

STDOUT_BUFFER_BYTES = 64 * 1024


class TapPepper(Plugin, Tap):
    """Singer tap for Pepper: a merchant's perks, awards, actions and users."""

    name = "tap-pepper"
    package_name = PACKAGE
    config_jsonschema = CONFIG_JSONSCHEMA
    secrets = SECRETS
    setting_error = ConfigError
    option_help: ClassVar[dict[str, str]] = {
        **Plugin.option_help,
        "discover": "Print the catalog: the streams, the fields, and which of them are selected.",
        "test": "Read the first rows of each stream, and print whether the stream is readable. Exit with 1 if a stream "
        "is not readable. --test=schema prints only the SCHEMA messages of the selected streams.",
        "catalog": "Read the streams and fields that this catalog selects.",
        "state": "Continue from this state, which target-crm printed after the last commit.",
    }
    capabilities: ClassVar[list[CapabilitiesEnum]] = [
        TapCapabilities.CATALOG,
        TapCapabilities.STATE,
        TapCapabilities.DISCOVER,
        TapCapabilities.TEST,
        PluginCapabilities.ABOUT,
        PluginCapabilities.STREAM_MAPS,
        PluginCapabilities.FLATTENING,
        PluginCapabilities.STRUCTURED_LOGGING,
    ]
    message_writer_class = MessageWriter
    message_writer: MessageWriter

    def __init__(self, *, catalog: Any = None, **options: Any) -> None:
        if isinstance(catalog, dict) and not isinstance(catalog, Catalog):
            catalog = complete_selection(catalog)
        super().__init__(catalog=catalog, **options)

    @cached_property
    def settings(self) -> Settings:
        """The settings with their types and defaults."""
        return Settings.from_config(self.config)

    @cached_property
    def client(self) -> PepperClient:
        """The client for Pepper's API, which all streams share."""
        return PepperClient(self.settings)

    @cached_property
    def merchant(self) -> str:
        """A hash of Pepper's host and the merchant's code. Each STATE contains this hash."""
        return digest([urlsplit(self.settings.api_url).hostname, self.settings.application_id])

    @cached_property
    def run_context(self) -> RunContext:
        """The context that the streams of this run share."""
        is_only_stream = sum(stream.selected for stream in self.streams.values()) == 1
        return RunContext(
            client=self.client,
            settings=self.settings,
            writer=self.message_writer,
            merchant=self.merchant,
            time_limit=TimeLimit(
                self.client.clock, self.settings.max_run_seconds, 1.0 if is_only_stream else ACTIONS_SHARE
            ),
            upper_bound=UpperBound(self.client, self.settings.settle_seconds),
            drops_data=self.drops_data,
        )

    def sync_all(self) -> None:  # type: ignore[misc]
        """Sync all streams, and raise their errors at the end.

        If a stream fails, the others continue. Only a `FatalRunError` or a broken pipe ends the run immediately.

        Raises:
            StreamsFailed: Several streams failed.
            Exception: The error of the only stream that failed.
        """
        failures, postponed = self.run_context.failures, self.run_context.postponed
        if not any(stream.selected for stream in self.streams.values()):
            self.logger.warning("no stream is selected in the catalog; nothing is read")
        try:
            super().sync_all()
        except FatalRunError as error:
            failures.append(("all streams", error))
        if postponed:
            self.logger.info("max_run_seconds reached: %s; the next run continues there", ", ".join(postponed))
        if len(failures) == 1:
            raise failures[0][1]
        if failures:
            raise StreamsFailed(failures)

    def run_connection_test(self) -> bool:  # type: ignore[misc]
        """Read the first rows of each stream. Print a line if the stream is readable, and log an error if it is not.

        Returns:
            Whether all streams are readable.
        """
        are_readable = True
        for name, stream in cast("dict[str, PepperStream]", self.streams).items():
            try:
                rows = stream.count_first_rows()
            except PepperError as error:
                self.logger.error("%s: not readable: %s", name, str(error).removeprefix(f"{name} "))  # noqa: TRY400
                are_readable = False
                if isinstance(error, FatalRunError):
                    break
            else:
                print(f"{name}: readable, {counted(rows, 'row')} seen", flush=True)
        return are_readable

    def write_selected_schemas(self) -> None:
        """Write the SCHEMA message of each selected stream. The SDK's `write_schemas` ignores the selection."""
        for stream in cast("dict[str, PepperStream]", self.streams).values():
            if stream.selected:
                stream._write_schema_message()  # noqa: SLF001

    def discover_streams(self) -> list[PepperStream]:
        """Return one stream per endpoint. The stream `users` is only included if `include_users` is true."""
        # Read the raw config, because discovery must also work without the required settings.
        included = [stream for stream in STREAMS if not stream.is_personal or self.config.get("include_users")]
        for name in [stream.name for stream in STREAMS if stream not in included]:
            entry = self.input_catalog.get_stream(name) if self.input_catalog else None
            if entry and entry.metadata.resolve_selection()[()]:
                self.logger.warning("%s: selected in the catalog but not read; set include_users to read it", name)
        return [stream(self, lambda: self.run_context) for stream in included]

    def setup_mapper(self) -> None:
        """Create the streams first: each one completes the catalog entry from which the SDK makes its stream map."""
        _ = self.streams
        super().setup_mapper()

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the state of an earlier run.

        Raises:
            ConfigError: The state is not from this tap, or it belongs to another merchant.
        """
        in_full = {name for name, stream in self.streams.items() if stream.replication_method == REPLICATION_FULL_TABLE}
        required_keys = {stream.name: () if stream.name in in_full else stream.bookmark_keys for stream in STREAMS}
        bookmarks = read_bookmarks(state, required_keys)
        if any(bookmark.get("merchant", self.merchant) != self.merchant for bookmark in bookmarks.values()):
            msg = (
                "state: it belongs to another merchant: application_id or the host in api_url differs; use one state "
                "per merchant, or, if only the host has changed, remove every 'merchant' from the state, and set "
                f"merchant in the warehouse's table _crm_coverage to {self.merchant!r}"
            )
            raise ConfigError(msg)
        for bookmark in bookmarks.values():
            coverage.start_run(bookmark)
        super().load_state({"bookmarks": bookmarks})

    def find_problems(self) -> list[str]:
        """Return what is wrong with the settings. No message shows the token, even if it is also in another setting."""
        token = self._config.get("auth_token")
        if isinstance(token, str) and token.strip():
            redact_in_logs(token.strip())
        lines = super().find_problems()
        return [*lines, *find_problems(self._config, {line.split(" ", 1)[0] for line in lines})]

    def _handle_termination(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Exit with the signal's exit code. The STATE of every complete window has been written already."""
        sys.exit(SIGNAL_EXIT_CODE + signum)

    # The command line.

    @classmethod
    def get_singer_command(cls) -> click.Command:
        """Return the command. It parses `--catalog` before `--test`, even if `--test` comes first."""
        command = super().get_singer_command()
        for option in command.params:
            if option.name == "catalog":
                option.is_eager = True
        return command

    @classmethod
    def cb_test(cls, ctx: click.Context, param: click.Option, value: str) -> None:  # noqa: ARG003
        """Run `--test` with the catalog, if there is one. Exit with 1 if a stream is not readable.

        `--test=schema` only writes the SCHEMA messages.
        """
        if value == CliTestOptionValue.Disabled.value:
            return
        given = ctx.params["config"]
        catalog = _checked_catalog(ctx.params.get("catalog"))
        tap = cls(config=given.config, parse_env_config=given.parse_env, catalog=catalog and json.load(catalog))
        if value == CliTestOptionValue.Schema.value:
            tap.write_selected_schemas()
            ctx.exit()
        ctx.exit(0 if tap.run_connection_test() else 1)

    @classmethod
    def invoke(  # type: ignore[override]
        cls,
        *,
        about: bool = False,
        about_format: str | None = None,
        config: _ConfigInput | None = None,
        state: IO[str] | None = None,
        catalog: IO[str] | None = None,
    ) -> None:
        """Check the files of `--state` and `--catalog`, then run the tap."""
        super().invoke(
            about=about,
            about_format=about_format,
            config=config,
            state=_checked_state(state),
            catalog=_checked_catalog(catalog),
        )


def main() -> NoReturn:
    """Run `tap-pepper` with the command-line arguments, and exit."""
    for stream in STREAMS:
        logging.getLogger(f"tap-pepper.{stream.path[1:]}").addFilter(_is_not_repeated_error)
    if sys.stdout is not None:
        # Containers often set PYTHONUNBUFFERED, which would cost a system call per record.
        sys.stdout = open(  # noqa: SIM115 - the interpreter flushes and closes it
            sys.stdout.fileno(), "w", buffering=STDOUT_BUFFER_BYTES, encoding="utf-8", closefd=False
        )
    run_cli(
        TapPepper.name,
        lambda: TapPepper.cli,
        expected=(PepperError, SingerSDKError),
        usage_exit_code=1,
        broken_pipe_message="the downstream process exited; see its log",
        draws_with_stdout_on_terminal=False,
        logs_are_redacted=True,
    )


def _is_not_repeated_error(record: logging.LogRecord) -> bool:
    """Return False for the SDK's record of a stream's error, because `run_cli` reports the error in full."""
    return not (record.levelno == logging.ERROR and str(record.msg).startswith("An unhandled error occurred"))


def _text_of(file: IO[str], what: str) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        msg = f"{what}: not UTF-8 text"
        raise ConfigError(msg) from error


def _checked_state(file: IO[str] | None) -> IO[str] | None:
    if file is None:
        return None
    what = f"state file {file.name}"
    text = _text_of(file, what).removeprefix("\ufeff")
    if not text.strip():
        # An empty file counts as no state: many people run `touch state.json` before the first run.
        logging.getLogger("tap-pepper").warning("%s is empty, so this run starts without a state", what)
        return None
    parse_object(text, what)
    return io.StringIO(text)


def _checked_catalog(file: IO[str] | None) -> IO[str] | None:
    if file is None:
        return None
    what = f"catalog file {file.name}"
    text = _text_of(file, what).removeprefix("\ufeff")
    catalog = parse_object(text, what)
    try:
        Catalog.from_dict(complete_selection(catalog | {"streams": catalog["streams"]}))
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{what}: not a Singer catalog; make one with tap-pepper --discover"
        raise ConfigError(msg) from error
    return io.StringIO(text)
