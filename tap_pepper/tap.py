"""The tap: its settings, its streams, its command line."""

from __future__ import annotations

import io
import logging
import os
import sys
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from singer_sdk import Tap
from singer_sdk.exceptions import ConfigValidationError, SingerSDKError
from singer_sdk.helpers.capabilities import CapabilitiesEnum, PluginCapabilities, TapCapabilities
from singer_sdk.plugin_base import JSONSchemaValidator
from singer_sdk.singerlib import Catalog

from pepper_runtime import logs
from pepper_runtime.cli import SIGNAL_EXIT_CODE, run_cli
from pepper_runtime.config import parse_object, read_config
from tap_pepper.api.client import PepperClient
from tap_pepper.errors import FixSettings, PepperError, StopEverything, StreamsFailed
from tap_pepper.messages import MessageWriter
from tap_pepper.redaction import keep_out_of_logs
from tap_pepper.settings import (
    CONFIG_JSONSCHEMA,
    PACKAGE,
    Settings,
    environment_numbers,
    environment_problems,
    problems,
)
from tap_pepper.state.dedupe import digest
from tap_pepper.streams import STREAMS, PepperStream
from tap_pepper.windows import settled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import IO

    import click
    from singer_sdk.plugin_base import _ConfigInput

STDOUT_BUFFER_BYTES = 64 * 1024
ACTIONS_SHARE = 0.75
"""How much of `max_run_seconds` actions may take: a backfill must not keep awards from ever being read."""


class TapPepper(Tap):
    """Singer tap for Pepper: a merchant's perks, awards, actions and users."""

    name = "tap-pepper"
    package_name = PACKAGE
    config_jsonschema = CONFIG_JSONSCHEMA
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

    _upper_bound: str | None = None
    agreed_until: str
    """The upper bound by whichever clock is behind, Pepper's or the local one. No clock alone can be relied on."""

    def __init__(self, *, config: Any = None, parse_env_config: bool = False, **kwargs: Any) -> None:
        self._environment = os.environ if parse_env_config else {}
        self.append_builtin_config(self.config_jsonschema)
        _refuse(environment_problems(self.config_jsonschema, self._environment))
        if isinstance(config, dict):
            config = {name: value for name, value in config.items() if value is not None}
        self.failures: list[tuple[str, Exception]] = []
        self._left: list[str] = []
        super().__init__(config=config, parse_env_config=parse_env_config, **kwargs)

    @cached_property
    def settings(self) -> Settings:
        """The settings, typed and complete."""
        return Settings.of(self.config)

    @cached_property
    def client(self) -> PepperClient:
        """The connection to Pepper, which all streams share."""
        return PepperClient(self.settings)

    def upper_bound(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The bound up to which this run reads, the same for all streams: Pepper's clock, less `settle_seconds`.

        Args:
            path: The endpoint to ask for the time, when it is not known yet.
            query: Parameters that make the answer small.
        """
        if self._upper_bound is None:
            now = self.client.clock(path, query)
            self._upper_bound = settled(now, self.settings.settle_seconds)
            self.agreed_until = settled(min(now, self.client.local.now()), self.settings.settle_seconds)
        return self._upper_bound

    @cached_property
    def _began_seconds(self) -> float:
        return self.client.local.seconds()

    def _seconds_left(self, share: float = 1.0) -> float:
        longest_seconds = self.settings.max_run_seconds
        if longest_seconds is None:
            return inf
        return self._began_seconds + share * longest_seconds - self.client.local.seconds()

    def has_time(self, seconds: float) -> bool:
        """Whether there is time left after so many seconds."""
        return self._seconds_left() > seconds

    def may_begin(self, stream: str) -> bool:
        """Whether there is time left to begin a stream that is read as a whole."""
        if self.has_time(0):
            return True
        self.leave(f"{stream} not begun")
        return False

    def actions_have_time(self, seconds: float) -> bool:
        """Whether there is time left for actions after so many seconds, and for the other streams after them."""
        alone = sum(stream.selected for stream in self.streams.values()) == 1
        return self._seconds_left(1.0 if alone else ACTIONS_SHARE) > seconds

    def leave(self, what: str) -> None:
        """Note what this run leaves to the next one, for it has no time for more."""
        self._left.append(what)

    @cached_property
    def merchant(self) -> str:
        """Whose data this is, as a state names it: a hash of Pepper's host and of the merchant's code."""
        return digest([urlsplit(self.settings.api_url).hostname, self.settings.application_id])

    def sync_all(self) -> None:  # type: ignore[misc]
        """Sync all streams. Where one fails the others go on; the errors come at the end.

        Raises:
            StreamsFailed: More than one stream failed.
            Exception: What ended the only stream that failed.
        """
        _ = self._began_seconds
        try:
            super().sync_all()
        except StopEverything as error:
            self.failures.append(("all streams", error))
        if self._left:
            self.logger.info("max_run_seconds is over: %s; the next run goes on there", ", ".join(self._left))
        if len(self.failures) == 1:
            raise self.failures[0][1]
        if self.failures:
            raise StreamsFailed(self.failures)

    def discover_streams(self) -> list[PepperStream]:
        """One stream for each endpoint."""
        return [stream(self) for stream in STREAMS]

    def setup_mapper(self) -> None:
        """Set up stream maps, after each stream has completed the catalog that they are made from."""
        _ = self.streams
        super().setup_mapper()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the state of an earlier run.

        Raises:
            FixSettings: It is no Singer state, or another merchant's.
        """
        bookmarks = state.get("bookmarks", {})
        if not isinstance(bookmarks, dict) or not all(isinstance(value, dict) for value in bookmarks.values()):
            msg = 'state: expected {"bookmarks": {"actions": {…}}}'
            raise FixSettings(msg)
        if any(bookmark.get("merchant", self.merchant) != self.merchant for bookmark in bookmarks.values()):
            msg = (
                "state: it is of another merchant, written with another host in api_url or another application_id; "
                "give each merchant a state of its own, or remove every 'merchant' if only the host has changed"
            )
            raise FixSettings(msg)
        super().load_state(state)

    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        """Check the settings, in words that show no secret: not even where it was given for another setting, too."""
        token = self._config.get("auth_token")
        if isinstance(token, str) and token.strip():
            keep_out_of_logs(token.strip())
        self._config.update(environment_numbers(self.config_jsonschema, self._environment))
        try:
            lines = problems(self._config, JSONSchemaValidator(self.config_jsonschema).iter_errors(self._config))
        except AttributeError:
            # What the SDK says of it is no JSON Schema, which shows where the value is not allowed.
            lines = ["stream_maps holds an __else__ that is neither null nor __NULL__"]
        if raise_errors:
            _refuse(lines)
        return lines

    def _handle_termination(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End with the exit code of a signal. Each drained window has its STATE out already."""
        sys.exit(SIGNAL_EXIT_CODE + signum)

    # The command line.

    @classmethod
    def get_singer_command(cls) -> click.Command:
        """The command, with `--log-format`."""
        return logs.add_option(super().get_singer_command())

    @classmethod
    def cb_config(cls, ctx: click.Context, param: click.Option, value: tuple[str, ...]) -> _ConfigInput:
        """Check the files of `--config`, then let the SDK read them."""
        for path in value:
            if path != "ENV":
                read_config(path)
        return super().cb_config(ctx, param, value)

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
        """Run the tap as the options say."""
        try:
            super().invoke(
                about=about,
                about_format=about_format,
                config=config,
                state=_checked_state(state),
                catalog=_checked_catalog(catalog),
            )
        except ConfigValidationError as error:
            # The SDK would add a line that says nothing.
            raise FixSettings(str(error)) from error


def main() -> NoReturn:
    """Run the console script."""
    for stream in STREAMS:
        logging.getLogger(f"tap-pepper.{stream.path[1:]}").addFilter(_is_not_repeated_error)
    run_cli(
        TapPepper.name,
        lambda: TapPepper.cli,
        expected=(PepperError, SingerSDKError),
        failures_of=_failures_of,
        usage_exit_code=1,
        broken_pipe_message="the downstream process exited; see its log",
        draws_with_stdout_on_terminal=False,
        logs_are_redacted=True,
        # Containers often set PYTHONUNBUFFERED, which would cost a system call per record.
        stdout_buffer_bytes=STDOUT_BUFFER_BYTES,
    )


def _failures_of(error: Exception) -> list[tuple[str, Exception]]:
    return error.failures if isinstance(error, StreamsFailed) else [("", error)]


def _is_not_repeated_error(record: logging.LogRecord) -> bool:
    """Drop the SDK's record of a stream's error: `run_cli` reports the error in full."""
    return not (record.levelno == logging.ERROR and str(record.msg).startswith("An unhandled error occurred"))


def _refuse(lines: list[str]) -> None:
    if lines:
        raise ConfigValidationError("; ".join(lines), errors=lines, schema=CONFIG_JSONSCHEMA)


def _text_of(file: IO[str], what: str) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        msg = f"{what}: not UTF-8 text"
        raise FixSettings(msg) from error


def _checked_state(file: IO[str] | None) -> IO[str] | None:
    if file is None:
        return None
    what = f"state file {file.name}"
    text = _text_of(file, what)
    parse_object(text, what)
    return io.StringIO(text)


def _checked_catalog(file: IO[str] | None) -> IO[str] | None:
    if file is None:
        return None
    what = f"catalog file {file.name}"
    text = _text_of(file, what)
    try:
        Catalog.from_dict(parse_object(text, what))
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{what}: not a Singer catalog; make one with tap-pepper --discover"
        raise FixSettings(msg) from error
    return io.StringIO(text)
