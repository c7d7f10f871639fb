"""How log lines look: short text for people, or one JSON object a line for machines.

The SDK writes the JSON, as it does for Meltano, which asks for it by `SINGER_SDK_LOG_CONFIG`. Here is chosen which of
the two it is, before anything else can go wrong: an error in a config file is to be JSON, too.
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
HELP: Final = "Log lines as short text, or as one JSON object a line, metrics included. Default: text."

_PARSER: Final = click.Command(
    None,
    params=[click.Option([OPTION]), click.Option(["--config"], multiple=True)],
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)

# What the SDK says of itself at each start, by the beginning of its templates. Nobody waits for it.
_NOISE: Final = (
    "Parsing env var",
    "Parsing '%s' config from env",
    "Skipping parse of env var",
    "Skipping deselected stream",
    "Reader '%s' completed",
)


def log_format_setting() -> Any:
    """Declare the setting `log_format`."""
    return setting(
        "Log format",
        "Log lines as short text, or one JSON object a line, with the metrics. Also `--log-format`.",
        default=TEXT,
        choices=FORMATS,
    )


def requested_format(plugin: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the format that the command line asks for, or else the environment, or else a config file.

    This runs before the command parses its arguments, because errors of parsing follow the format, too. An invalid
    format or file counts as text here: the command reports it later.
    """
    with _PARSER.make_context(plugin, list(arguments), resilient_parsing=True) as context:
        wanted: list[Any] = [context.params["log_format"], environment.get(f"{variable_prefix(plugin)}LOG_FORMAT")]
        wanted += map(_format_in_file, context.params["config"])
    return JSON if str(next(filter(None, wanted), TEXT)).lower() == JSON else TEXT


def variable_prefix(plugin: str) -> str:
    """Return how a plugin's environment variables begin: `TAP_PEPPER_`."""
    return f"{plugin.upper().replace('-', '_')}_"


def set_up(name: str, log_format: str) -> None:
    """Have the root's handlers write a format, once the SDK has set them up.

    Text leaves out the metrics and what the SDK says of itself, but at DEBUG. Whoever has set up formatters by
    `SINGER_SDK_LOG_CONFIG`, as Meltano does, keeps them with text.
    """
    level = logging.getLogger().level
    for handler in console_handlers():
        if log_format == JSON:
            handler.setFormatter(StructuredFormatter(defaults={"app_name": name}))
            handler.addFilter(_with_stream)
        elif level > logging.DEBUG:
            handler.addFilter(_is_for_people)


def is_structured() -> bool:
    """Whether each line is a JSON object."""
    return any(isinstance(handler.formatter, StructuredFormatter) for handler in console_handlers())


def console_handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers that write to stderr."""
    return [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]


def format_line(name: str, level: int, message: str) -> bytes:
    """What a log line is like, for a signal's handler, which must not use a logger: it may be in use."""
    if not is_structured():
        return f"{name}: {message}\n".encode()
    record = logging.LogRecord(name, level, __file__, 0, message, None, None)
    return f"{StructuredFormatter(defaults={'app_name': name}).format(record)}\n".encode()


def format_option(text: str = HELP) -> click.Option:
    """Return the option `--log-format`. It only checks the value: `requested_format` has read it by then."""
    return click.Option([OPTION], type=click.Choice(FORMATS, case_sensitive=False), expose_value=False, help=text)


def add_format_option(command: click.Command) -> click.Command:
    """Add the option `--log-format` to a plugin's command."""
    command.params.append(format_option())
    return command


def _format_in_file(path: str) -> object:
    with suppress(ConfigFileError):
        return read_config(path).get("log_format")
    return None


def metric_point(record: logging.LogRecord) -> metrics.Point[Any] | None:
    """The measurement that a record of the SDK's metrics log holds."""
    args = record.args
    return args[0] if isinstance(args, tuple) and args and isinstance(args[0], metrics.Point) else None


def _with_stream(record: logging.LogRecord) -> bool:
    """Name the stream of a metric."""
    if point := metric_point(record):
        record.stream_name = point.tags.get("stream")
    return True


def _is_for_people(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not (metric_point(record) or str(record.msg).startswith(_NOISE))
