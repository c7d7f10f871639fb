"""Console scripts: exit codes, and one line for each error, whatever ends the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import RUN_SECONDS_MAX, environment

PROGRAM = """
import sys
import click
from pepper_runtime.cli import run_cli

@click.command()
@click.argument("ending")
def command(ending):
    print("output")
    if ending == "exit":
        sys.exit(7)
    if ending == "context-exit":
        click.get_current_context().exit(8)
    if ending == "interrupt":
        raise KeyboardInterrupt
    if ending != "return":
        raise {"expected": LookupError, "unexpected": ValueError}[ending]("s3cret\\nline")
    return 3

options = {"broken_pipe_message": "reader gone"} if sys.argv[-1] == "--tell" else {}
sys.argv = sys.argv[:2]
run_cli("a-program", lambda: command, expected=(LookupError,), error_exit_code=5, **options)
"""


def run(*arguments: str, stdout: int = subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        # Let Python buffer stdout, so that a write to a closed pipe fails only at the last flush.
        env=environment(PYTHONUNBUFFERED="", **variables),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


@pytest.mark.parametrize(
    ("ending", "exit_code", "error"),
    [
        pytest.param("return", 3, "", id="result"),
        pytest.param("exit", 7, "", id="sys-exit"),
        pytest.param("context-exit", 8, "", id="click-exit"),
        pytest.param("interrupt", 130, "", id="ctrl-c"),
        pytest.param("expected", 5, "a-program: s3cret line\n", id="expected-error"),
        pytest.param("--nope", 2, "a-program: No such option", id="usage-error"),
    ],
)
def test_each_ending_has_its_exit_code_and_at_most_one_line(ending: str, exit_code: int, error: str) -> None:
    ran = run(ending)
    assert ran.returncode == exit_code
    assert ran.stderr.startswith(error)
    assert ran.stderr.count("\n") == bool(error)


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_unexpected_error_hides_its_text(level: str) -> None:
    ran = run("unexpected", A_PROGRAM_LOGLEVEL=level)
    assert ran.returncode == 5
    assert ran.stderr.startswith("a-program: unexpected ValueError at <string>:")
    assert "set A_PROGRAM_LOGLEVEL=DEBUG" in ran.stderr
    assert "s3cret" not in ran.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [pytest.param([], "", id="silent"), pytest.param(["--tell"], "a-program: reader gone\n", id="message")],
)
@pytest.mark.parametrize("ending", ["return", "context-exit"])
def test_closed_pipe_at_the_last_flush_is_an_error(ending: str, options: list[str], error: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = run(ending, *options, stdout=writer)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (5, error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_full_disk_at_the_last_flush_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        ran = run("return", stdout=full.fileno())
    assert ran.returncode == 5
    assert ran.stderr.startswith("a-program: unexpected OSError (No space left on device) at cli.py:")
