"""How log lines look: short text for people, or one JSON object a line for machines.

The SDK writes the JSON, as it does for Meltano, which asks for it by `SINGER_SDK_LOG_CONFIG`. Here is chosen which of
the two it is, before anything else can go wrong: an error in a config file is to be JSON, too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from singer_sdk import metrics
from singer_sdk import typing as th
from singer_sdk.logging import StructuredFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTION: Final = "--log-format"
TEXT, JSON = "text", "json"
FORMATS: Final = (TEXT, JSON)
SETTING: Final = th.Property(
    "log_format",
    th.StringType(allowed_values=list(FORMATS)),
    default=TEXT,
    title="Log format",
    description="Log lines as short text, or one JSON object a line, with the metrics. Also `--log-format`.",
)
HELP: Final = "Log lines as short text, or as one JSON object a line, metrics included. Default: text."

# What the SDK says of itself at each start, by the beginning of its templates. Nobody waits for it.
_NOISE: Final = (
    "Parsing env var",
    "Parsing '%s' config from env",
    "Skipping parse of env var",
    "Skipping deselected stream",
    "Reader '%s' completed",
)


def chosen(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The format that the command line asks for, or else the environment (`TAP_PEPPER_LOG_FORMAT`), or a config file.

    What is no format, or no file, is for others to complain about: here it counts as text.
    """
    wanted: Any = environment.get(f"{name.upper().replace('-', '_')}_LOG_FORMAT")
    wanted = wanted or next(filter(None, map(_of_file, _given(arguments, "--config"))), None)
    for given in _given(arguments, OPTION):
        wanted = given
    return JSON if str(wanted).lower() == JSON else TEXT


def set_up(name: str, log_format: str) -> None:
    """Have the root's handlers write a format, once the SDK has set them up.

    Text leaves out the metrics and what the SDK says of itself, but at DEBUG. Whoever has set up formatters by
    `SINGER_SDK_LOG_CONFIG`, as Meltano does, keeps them with text.
    """
    level = logging.getLogger().level
    for handler in console():
        if log_format == JSON:
            handler.setFormatter(StructuredFormatter(defaults={"app_name": name}))
            handler.addFilter(_with_stream)
        elif level > logging.DEBUG:
            handler.addFilter(_is_for_people)


def is_structured() -> bool:
    """Whether each line is a JSON object."""
    return any(isinstance(handler.formatter, StructuredFormatter) for handler in console())


def console() -> list[logging.StreamHandler[Any]]:
    """The handlers that write to stderr."""
    return [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]


def last_words(name: str, message: str) -> None:
    """Tell why a program ends, in one line: `target-crm: …`, or as JSON where all lines are."""
    if is_structured():
        logging.getLogger(name).critical(message)
    else:
        print(f"{name}: {message}", file=sys.stderr)


def unforeseen(name: str, error: Exception) -> str:
    """An error that nobody has thought of, in one line. Its text, and its trace, may quote a record or a secret."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "nowhere"
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    variable = f"{name.upper().replace('-', '_')}_LOGLEVEL"
    return f"unexpected {type(error).__name__}{reason} at {place}; {variable}=DEBUG shows the way there"


def leave_stdout() -> None:
    """Write what stdout still buffers, or give it up: the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def line(name: str, level: int, message: str) -> bytes:
    """What a log line is like, for a signal's handler, which must not use a logger: it may be in use."""
    if not is_structured():
        return f"{name}: {message}\n".encode()
    record = logging.LogRecord(name, level, __file__, 0, message, None, None)
    return f"{StructuredFormatter(defaults={'app_name': name}).format(record)}\n".encode()


def with_option(command: click.Command) -> click.Command:
    """A command that takes `--log-format` also; `chosen` has read it by then."""
    kind = click.Choice(FORMATS, case_sensitive=False)
    command.params.append(click.Option([OPTION], type=kind, expose_value=False, help=HELP))
    return command


def _given(arguments: Sequence[str], option: str) -> list[str]:
    """The values of an option, in order."""
    apart = [value for name, value in pairwise(arguments) if name == option]
    return apart + [text.partition("=")[2] for text in arguments if text.startswith(f"{option}=")]


def _of_file(path: str) -> str | None:
    with suppress(OSError, ValueError):
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        return config.get("log_format") if isinstance(config, dict) else None
    return None


def point_of(record: logging.LogRecord) -> metrics.Point[Any] | None:
    """The measurement that a record of the SDK's metrics log holds."""
    args = record.args
    return args[0] if isinstance(args, tuple) and args and isinstance(args[0], metrics.Point) else None


def _with_stream(record: logging.LogRecord) -> bool:
    """Name the stream of a metric."""
    if point := point_of(record):
        record.stream_name = point.tags.get("stream")
    return True


def _is_for_people(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not (point_of(record) or str(record.msg).startswith(_NOISE))
