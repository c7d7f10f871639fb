"""Format log lines: short text for people, or one JSON object per line for machines.

The SDK's `StructuredFormatter` writes the JSON. Meltano requests the same formatter with `SINGER_SDK_LOG_CONFIG`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click
from singer_sdk import metrics
from singer_sdk.logging import StructuredFormatter

from pepper_runtime.config import ConfigFileError, read_config
from pepper_runtime.settings import setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTION: Final = "--log-format"
TEXT, JSON = "text", "json"
FORMATS: Final = (TEXT, JSON)
HELP: Final = "text writes short log lines; json writes one JSON object per line, and includes metrics. Default: text."

_PARSER: Final = click.Command(
    None,
    params=[click.Option([OPTION]), click.Option(["--config"], multiple=True)],
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)

# In each run, the SDK logs messages that begin with these strings. They do not help users.
_NOISE: Final = (
    "Parsing env var",
    "Parsing '%s' config from env",
    "Skipping parse of env var",
    "Skipping deselected stream",
    "Reader '%s' completed",
)


def log_format_setting() -> Any:
    """Declare the setting `log_format`, which both plugins have."""
    return setting(
        "Log format",
        "text writes short log lines; json writes one JSON object per line, and includes metrics. The option "
        "`--log-format` overrides this setting.",
        default=TEXT,
        choices=FORMATS,
    )


def requested_format(plugin: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the log format. The command line overrides the environment, which overrides the config files.

    This function runs before the command parses its arguments, because messages about wrong arguments also need the
    format. It returns `text` for an invalid format, and ignores an invalid file. The command later reports both
    problems.
    """
    with _PARSER.make_context(plugin, list(arguments), resilient_parsing=True) as context:
        wanted: list[Any] = [context.params["log_format"], environment.get(f"{variable_prefix(plugin)}LOG_FORMAT")]
        wanted += map(_format_in_file, context.params["config"])
    return JSON if str(next(filter(None, wanted), TEXT)).lower() == JSON else TEXT


def variable_prefix(plugin: str) -> str:
    """Return the prefix of a plugin's environment variables, such as `TAP_PEPPER_`."""
    return f"{plugin.upper().replace('-', '_')}_"


def set_up(name: str, log_format: str) -> None:
    """Set the format of the root logger's console handlers. Call this after the SDK has set up the handlers.

    The text format leaves out metrics and the messages in `_NOISE`, except at DEBUG. It keeps the formatters that
    `SINGER_SDK_LOG_CONFIG` has set up, for example when Meltano runs the plugin.
    """
    level = logging.getLogger().level
    for handler in console_handlers():
        if log_format == JSON:
            handler.setFormatter(StructuredFormatter(defaults={"app_name": name}))
            handler.addFilter(_with_stream)
        elif level > logging.DEBUG:
            handler.addFilter(_is_for_people)


def is_structured() -> bool:
    """Return whether each log line is a JSON object."""
    return any(isinstance(handler.formatter, StructuredFormatter) for handler in console_handlers())


def console_handlers() -> list[logging.StreamHandler[Any]]:
    """Return the handlers that write to stderr."""
    return [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]


def format_line(name: str, level: int, message: str) -> bytes:
    """Format a log line for a signal handler.

    The handler must not use a logger, because the signal may have interrupted a logger that holds a lock.
    """
    if not is_structured():
        return f"{name}: {message}\n".encode()
    record = logging.LogRecord(name, level, __file__, 0, message, None, None)
    return f"{StructuredFormatter(defaults={'app_name': name}).format(record)}\n".encode()


def format_option(text: str = HELP) -> click.Option:
    """Return the option `--log-format`. It only checks the value, which `requested_format` has already read."""
    return click.Option([OPTION], type=click.Choice(FORMATS, case_sensitive=False), expose_value=False, help=text)


def _format_in_file(path: str) -> object:
    with suppress(ConfigFileError):
        return read_config(path).get("log_format")
    return None


def metric_point(record: logging.LogRecord) -> metrics.Point[Any] | None:
    """Return the measurement in a log record; None if the record is not from the SDK's metrics log."""
    args = record.args
    return args[0] if isinstance(args, tuple) and args and isinstance(args[0], metrics.Point) else None


def _with_stream(record: logging.LogRecord) -> bool:
    """Add the name of the stream to a metric's record."""
    if point := metric_point(record):
        record.stream_name = point.tags.get("stream")
    return True


def _is_for_people(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not (metric_point(record) or str(record.msg).startswith(_NOISE))
