"""Measure tap-pepper: its speed compared with a minimal program and a stock tap, its memory, an idle poll, and a load.

    ./dev bench tap [--actions 200000] [--rounds 3] [--full] [speed memory idle whole]

The program writes the results into `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import psycopg

from benchmarks.harness import Run, bars, curves, in_turn, own_environment, run, seconds_of, write_plot, write_section
from benchmarks.tap_pages import START
from tests.helpers.postgres import PostgresServer, new_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PYTHON: Final = sys.executable
MELTANO: Final = Path(PYTHON).with_name("meltano")
QUIET: Final = {"LOGLEVEL": "WARNING", "TAP_PEPPER_LOGLEVEL": "WARNING", "TARGET_CRM_LOGLEVEL": "WARNING"}
SMALL, LARGE, FULL_LARGE = 100_000, 1_000_000, 5_000_000
FULL_WHOLE = 1_000_000


@contextmanager
def pepper(actions: int, rows_per_page: int) -> Iterator[str]:
    """Serve pages from a separate process, and yield the server's address."""
    command = (PYTHON, "-m", "benchmarks.tap_pages", f"--actions={actions}", f"--rows-per-page={rows_per_page}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - a module of this package
        assert server.stdout is not None  # noqa: S101 - stdout is a pipe
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


class Setup:
    """The commands of the programs that read from one server, and their files in a separate folder."""

    def __init__(self, folder: Path, url: str, rows_per_page: int) -> None:
        self.folder = folder
        self.url = url
        self.rows_per_page = rows_per_page
        self.programs = own_environment()
        settings = {"auth_token": "a-benchmark", "application_id": "pages", "start_date": START.isoformat()}
        self.config = self.write("tap", {"api_url": url, "page_size": rows_per_page, **settings})
        discover = [self.programs / "tap-pepper", "--discover", "--config", self.config]
        discovered = subprocess.run(discover, capture_output=True, check=True)  # noqa: S603
        self.catalog = self.write("catalog", _only("actions", json.loads(discovered.stdout)))

    def write(self, name: str, content: object) -> Path:
        """Write JSON into a file in the folder, and return the file's path."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    @property
    def tap(self) -> list[str | Path]:
        """The command of tap-pepper, with only actions selected."""
        return [self.programs / "tap-pepper", "--config", self.config, "--catalog", self.catalog]

    @property
    def floor(self) -> list[str | Path]:
        """The command of the floor, the minimal program."""
        return [PYTHON, "-m", "benchmarks.tap_floor", self.url, str(self.rows_per_page)]

    @property
    def stock(self) -> list[str | Path]:
        """The command of the stock tap."""
        config = self.write("stock", {"api_url": self.url, "page_size": self.rows_per_page})
        return [PYTHON, "-m", "benchmarks.tap_stock", "--config", config]

    def target(self, url: str, name: str = "target") -> list[str | Path]:
        """The command of target-crm, which loads into the warehouse at `url`."""
        return [self.programs / "target-crm", "--config", self.write(name, {"sqlalchemy_url": url})]


def _only(stream: str, catalog: dict[str, Any]) -> dict[str, Any]:
    for entry in catalog["streams"]:
        for item in entry["metadata"]:
            if not item["breadcrumb"]:
                item["metadata"]["selected"] = entry["tap_stream_id"] == stream
    return catalog


@contextmanager
def set_up(actions: int, rows_per_page: int) -> Iterator[Setup]:
    """Start a server, and write the files for the programs that read from it."""
    with tempfile.TemporaryDirectory(prefix="pepper-crm-bench-") as folder, pepper(actions, rows_per_page) as url:
        yield Setup(Path(folder), url, rows_per_page)


def speed(actions: int, rounds: int) -> str:
    """Measure the speed of tap-pepper, the floor and the stock tap, with small and with large pages."""
    parts: list[str] = []
    rates: dict[str, float] = {}
    for rows_per_page in (100, 1000):
        print(f"{actions:,} actions, {rows_per_page:,} a page", flush=True)
        with set_up(actions, rows_per_page) as setup:
            commands = {"floor": setup.floor, "tap-pepper": setup.tap, "stock tap": setup.stock}
            results = in_turn(
                {name: partial(run, command, environment=QUIET) for name, command in commands.items()}, rounds
            )
        parts += [f"{actions:,} actions, {rows_per_page:,} a page:", _against_floor(results, actions)]
        rates |= {f"{name}, {rows_per_page} a page": actions / seconds_of(runs) for name, runs in results.items()}
    plot = write_plot("tap", bars("actions a second, from Pepper to stdout", rates, ""), "Actions a second")
    return "\n\n".join([*parts, plot])


def _against_floor(results: Mapping[str, Sequence[Run]], actions: int) -> str:
    """Make a table like `harness.table`, but with ratios of processor time, which vary less on a busy machine."""
    floor = results["floor"]
    lines = [
        "| | seconds | actions/s | time ÷ floor | processor time ÷ floor | peak MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, runs in results.items():
        seconds, processor_seconds = seconds_of(runs), _processor_seconds(runs)
        ratios = f"{seconds / seconds_of(floor):.2f} | {processor_seconds / _processor_seconds(floor):.2f}"
        peak_mb = max(each.peak_mb for each in runs)
        lines.append(f"| {name} | {seconds:.2f} | {actions / seconds:,.0f} | {ratios} | {peak_mb:.0f} |")
    return "\n".join(lines)


def _processor_seconds(runs: Sequence[Run]) -> float:
    return median(each.cpu_seconds for each in runs)


def memory(large: int) -> str:
    """Measure the tap's peak memory as the input grows."""
    sizes = (SMALL, (SMALL + large) // 2, large)
    lines = [f"| peak MB | {' | '.join(f'{actions:,} actions' for actions in sizes)} |", "|---|" + "---:|" * len(sizes)]
    peaks: dict[str, list[tuple[float, float]]] = {}
    for rows_per_page in (100, 1000):
        name = f"{rows_per_page:,} a page"
        peaks[name] = []
        for actions in sizes:
            with set_up(actions, rows_per_page) as setup:
                peaks[name].append((actions, run(setup.tap, environment=QUIET).peak_mb))
                print(f"{actions:,} actions, {name}: {peaks[name][-1][1]:.0f} MB", flush=True)
        lines.append(f"| {name} | {' | '.join(f'{peak_mb:.0f}' for _, peak_mb in peaks[name])} |")
    plot = write_plot("tap-memory", curves("The tap's peak memory", "actions", "MB", peaks), "Peak memory")
    return "\n".join([*lines, "", plot])


def idle(rounds: int) -> str:
    """Measure the time of a poll without new rows, and the time of the imports alone."""
    with set_up(3000, 100) as setup, PostgresServer() as server:
        engines = {
            "SQLite": f"sqlite:///{setup.folder / 'warehouse.db'}",
            "PostgreSQL": new_database(server.url).replace("postgresql:", "postgresql+psycopg:"),
        }
        targets = {engine: setup.target(url, engine) for engine, url in engines.items()}
        output, state = setup.folder / "output", setup.folder / "state.json"
        for target in targets.values():
            run(setup.tap, target, stdout=output, environment=QUIET)
        state.write_text(output.read_text().splitlines()[-1])
        tap = [*setup.tap, "--state", state]
        run(tap, stdout=output, environment=QUIET)
        programs: dict[str, Callable[[], Run]] = {
            "import singer_sdk": partial(run, [setup.programs / "python", "-c", "import singer_sdk"]),
            "import sqlalchemy": partial(run, [setup.programs / "python", "-c", "import sqlalchemy"]),
            "tap-pepper --version": partial(run, [setup.programs / "tap-pepper", "--version"]),
            "target-crm --version": partial(run, [setup.programs / "target-crm", "--version"]),
            "tap-pepper": partial(run, tap, environment=QUIET),
        }
        for engine, target in targets.items():
            programs[f"target-crm into {engine}"] = partial(run, target, stdin=output, environment=QUIET)
            programs[f"tap-pepper \\| target-crm into {engine}"] = partial(run, tap, target, environment=QUIET)
        results = in_turn(programs, rounds)
    lines = ["| | seconds | processor seconds |", "|---|---:|---:|"]
    for name, runs in results.items():
        lines.append(f"| {name} | {seconds_of(runs):.2f} | {_processor_seconds(runs):.2f} |")
    return "\n".join(lines)


def whole(actions: int) -> str:
    """Measure a load into PostgreSQL, through a shell pipe and with `meltano run`."""
    lines = ["| | seconds | actions/s | processor seconds | peak MB |", "|---|---:|---:|---:|---:|"]
    with set_up(actions, 1000) as setup, PostgresServer() as server:
        for name, load in (("tap-pepper \\| target-crm", _load_through_pipe), ("meltano run", _load_with_meltano)):
            database = new_database(server.url)
            result = load(setup, database.replace("postgresql:", "postgresql+psycopg:"))
            with psycopg.connect(database) as connection:
                (loaded,) = connection.execute("select count(*) from actions").fetchone() or (0,)
            if loaded != actions:
                raise RuntimeError(f"{name}: {loaded:,} of {actions:,} actions were loaded")
            figures = f"{result.seconds:,.1f} | {actions / result.seconds:,.0f} | {result.cpu_seconds:,.1f}"
            lines.append(f"| {name} | {figures} | {', '.join(f'{peak_mb:.0f}' for peak_mb in result.peaks_mb)} |")
            print(lines[-1], flush=True)
    return "\n".join([f"{actions:,} actions, 1,000 a page:", "", *lines])


def _load_through_pipe(setup: Setup, url: str) -> Run:
    return run(setup.tap, setup.target(url), environment=QUIET)


def _load_with_meltano(setup: Setup, url: str) -> Run:
    """Run `meltano run` with this project's `meltano.yml`."""
    system = setup.folder / "meltano"
    environment = {
        "PATH": f"{MELTANO.parent}:{os.environ['PATH']}",
        "MELTANO_ENVIRONMENT": "prod",
        "MELTANO_SYS_DIR_ROOT": str(system),
        "MELTANO_DATABASE_URI": f"sqlite:///{system / 'meltano.db'}",
        "MELTANO_CLI_LOG_LEVEL": "error",
        "TAP_PEPPER__SELECT": '["actions.*"]',
        "TAP_PEPPER_API_URL": setup.url,
        "TAP_PEPPER_AUTH_TOKEN": "a-benchmark",
        "TAP_PEPPER_APPLICATION_ID": "pages",
        "TAP_PEPPER_START_DATE": START.isoformat(),
        "TAP_PEPPER_PAGE_SIZE": str(setup.rows_per_page),
        "TARGET_CRM_SQLALCHEMY_URL": url,
    }
    return run([MELTANO, "run", "tap-pepper", "target-crm"], environment=environment)


def main(arguments: Sequence[str]) -> None:
    """Run the requested measurements, and write each result into `docs/performance.md`."""
    parser = argparse.ArgumentParser(prog="./dev bench tap", description=__doc__)
    parser.add_argument("what", nargs="*", help="speed, memory, idle, whole; default: all of them")
    parser.add_argument("--actions", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--full", action="store_true", help=f"measure whole with {FULL_WHOLE:,} actions, and memory with {FULL_LARGE:,}"
    )
    asked = parser.parse_args(arguments)
    parts = {
        "speed": partial(speed, asked.actions, asked.rounds),
        "memory": partial(memory, FULL_LARGE if asked.full else LARGE),
        "idle": partial(idle, asked.rounds),
        "whole": partial(whole, FULL_WHOLE if asked.full else SMALL),
    }
    for name in asked.what or parts:
        text = parts[name]()
        print(text, flush=True)
        write_section(f"tap-{name}", text)
