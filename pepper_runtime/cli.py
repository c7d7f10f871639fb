"""Run a console script with logs, telemetry and progress. Each error becomes one line and an exit code."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from pepper_runtime import logs, telemetry
from pepper_runtime.config import ConfigFileError
from pepper_runtime.progress import display

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNAL_EXIT_CODE = 128
"""If a signal stops a process, the exit code is this number plus the signal's number."""


def run_cli(
    name: str,
    get_command: Callable[[], click.Command],
    *,
    expected: tuple[type[Exception], ...],
    plugin: str | None = None,
    error_exit_code: int = 1,
    usage_exit_code: int = 2,
    broken_pipe_message: str | None = None,
    draws_with_stdout_on_terminal: bool = True,
    logs_are_redacted: bool = False,
) -> NoReturn:
    """Run a console script to its end and exit.

    An error may have an attribute `failures`, a list of pairs. Each pair contains the name of a failed part, and the
    part's error. This function then reports each pair on its own line.

    Args:
        name: The script's name, such as `tap-pepper`.
        get_command: Returns the command, after setting up console logging.
        expected: Errors whose text is safe and clear enough to show. For other errors, the user sees only the type and
            the place in the code.
        plugin: The plugin whose variables `…_LOG_FORMAT` and `…_LOGLEVEL` apply; by default `name`.
        error_exit_code: Exit code for errors other than usage errors.
        usage_exit_code: Exit code for usage errors, such as an unknown option.
        broken_pipe_message: The error message if the reader of stdout exits; by default there is none.
        draws_with_stdout_on_terminal: Whether to draw progress even if stdout is also a terminal.
        logs_are_redacted: Whether secrets are removed from all log records. If so, errors are reported as log lines,
            and DEBUG also shows the traceback of expected errors.
    """
    plugin = plugin or name
    logger = logging.getLogger(name)

    def fail(message: str, *, trace: bool) -> None:
        message = " ".join(message.split())
        display.stop()
        if logs_are_redacted:
            logger.critical(message)
        else:
            fatal(name, message)
        if trace:
            logger.debug("traceback", exc_info=True)
        discard_stdout()

    _set_up_stdout()
    command = get_command()
    if f"_{name.upper().replace('-', '_')}_COMPLETE" in os.environ:
        # Print click's shell completion and exit.
        command.main(prog_name=name)
    logs.set_up(name, logs.requested_format(plugin, sys.argv[1:], os.environ))
    telemetry.start(name)
    display.start(name, with_stdout_on_terminal=draws_with_stdout_on_terminal)
    status: object = error_exit_code
    try:
        status = _invoke(command, name)
    except SystemExit as ending:
        status = ending.code
    except (KeyboardInterrupt, click.Abort):
        status = SIGNAL_EXIT_CODE + signal.SIGINT
    except click.ClickException as error:
        status = usage_exit_code if isinstance(error, click.UsageError) else error_exit_code
        fail(_usage_message(error), trace=logs_are_redacted)
    except BrokenPipeError:
        if broken_pipe_message:
            fail(broken_pipe_message, trace=False)
        else:
            discard_stdout()
    except Exception as error:  # noqa: BLE001 - the text of an unexpected error may quote a record
        for part, failure in getattr(error, "failures", [("", error)]):
            is_expected = isinstance(failure, (ConfigFileError, *expected))
            message = str(failure) or type(failure).__name__ if is_expected else unexpected(plugin, failure)
            fail(
                message if message.startswith(part) else f"{part}: {message}",
                trace=logs_are_redacted or not is_expected,
            )
    finally:
        display.stop()
        telemetry.stop(name, status)
    sys.exit(status)  # type: ignore[arg-type]


def _invoke(command: click.Command, name: str) -> object:
    """Run the command, flush stdout, and return the exit code. `command.main` would hide a broken pipe."""
    try:
        with command.make_context(name, sys.argv[1:]) as context:
            status = command.invoke(context)
    except click.exceptions.Exit as ending:
        status = ending.exit_code
    sys.stdout.flush()
    return status


def fatal(name: str, message: str) -> None:
    """Print why the program failed, on one line: `target-crm: …`. If log lines are JSON, this line is JSON as well."""
    if logs.is_structured():
        logging.getLogger(name).critical(message)
    else:
        print(f"{name}: {message}", file=sys.stderr)


def unexpected(plugin: str, error: Exception) -> str:
    """Describe an unexpected error on one line, without its text, which may quote a record or a secret."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "an unknown place"
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    advice = f"set {logs.variable_prefix(plugin)}LOGLEVEL=DEBUG to see the traceback"
    return f"unexpected {type(error).__name__}{reason} at {place}; {advice}"


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message()
    names_value = isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)
    if isinstance(error, click.UsageError) and error.ctx and not names_value:
        return f"{message.rstrip('.')}. See {error.ctx.command_path} --help."
    return message


def discard_stdout() -> None:
    """Flush stdout. If that fails, point stdout at /dev/null, because the interpreter flushes it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _set_up_stdout() -> None:
    """Make stdout accept any text in any locale. If stdout is closed, replace it with /dev/null."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
