"""Compare target-crm with a minimal loader and other loaders, and write tables and plots into docs/performance.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks import data, harness, tap_bench
from benchmarks.harness import Run, ServerUsage, environment, in_turn, seconds_of
from pepper_runtime.wording import counted
from tests.helpers.postgres import PostgresServer, new_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from psycopg import Connection

    Contender = Callable[[], Run]

ENGINES = ("postgresql", "sqlite", "duckdb")
PARTS = ("floors", "simple", "notations", "peers", "memory", "growth")
BATCH_ROWS = 10_000
FLOOR, PROJECT = "floor", "target-crm"
# A typical number for a programme whose users come back.
ACTIONS_PER_AWARD = 10


# The total size of a database's tables, and the total size of their indexes.
SIZES = """
    SELECT sum(pg_table_size(pg_class.oid))::bigint, sum(pg_indexes_size(pg_class.oid))::bigint
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema')"""


class Bench:
    """Runs loaders. Their files are in one folder, and their PostgreSQL databases are on one server."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.folder = folder
        self._postgres = postgres
        self._numbers = count()
        self._programs = harness.own_environment()
        self._python = self._programs / "python"
        self._target = [self._programs / "target-crm"]

    def new_url(self, engine: str) -> str:
        """The URL of a new, empty warehouse."""
        if engine != "postgresql":
            return f"{engine}:///{self.folder}/{next(self._numbers)}.{engine}"
        return new_database(self._postgres.url)

    def floor(self, engine: str, messages: Path) -> Run:
        """Load into an empty warehouse with the floor, the minimal loader."""
        url = self.new_url(engine)
        return self._with_server(url, lambda: harness.run(self._floor_command(url), stdin=messages))

    def load(self, url: str, messages: Path, **settings: Any) -> Run:
        """Load messages into the warehouse at `url` with target-crm."""
        return self._with_server(url, lambda: self._run(self._target, messages, {"sqlalchemy_url": url, **settings}))

    def fill(self, url: str, actions: int, first: int = 0, awards: int | None = None) -> Run:
        """Generate actions and pipe them into target-crm, without a file in between."""
        target = [*self._target, "--config", self._config({"sqlalchemy_url": url})]
        return harness.run(self._generator_command(actions, first, awards), target)

    def fill_with_floor(self, url: str, actions: int) -> Run:
        """Generate actions and pipe them into the floor."""
        return harness.run(self._generator_command(actions), self._floor_command(url))

    def aggregate(self, url: str) -> Run:
        """Run a program that computes a simple aggregate over the ledger."""
        return harness.run([self._python, "-m", "benchmarks.aggregate", url])

    def balances(self, url: str, command: str) -> Run:
        """Run a command of crm-balances on the warehouse at `url`."""
        return harness.run([self._programs / "crm-balances", command], environment={"TARGET_CRM_SQLALCHEMY_URL": url})

    def project(self, engine: str, messages: Path) -> Run:
        """Load into an empty warehouse with target-crm."""
        return self.load(self.new_url(engine), messages)

    def peer(self, command: Sequence[str | Path], engine: str, messages: Path, **settings: Any) -> Run:
        """Load into an empty warehouse with another Singer target."""
        url = self.new_url(engine)
        if engine == "duckdb":
            settings["filepath"] = url.removeprefix("duckdb:///")
            return self._with_server(url, lambda: self._run(command, messages, settings))
        port = int(self._postgres.url.rsplit(":", 1)[1])
        server = {"host": "127.0.0.1", "port": port, "user": "postgres", "password": "postgres"}
        database = url.rsplit("/", 1)[1]
        settings |= {**server, "database": database, "dbname": database}
        return self._with_server(url, lambda: self._run(command, messages, settings))

    def dlt(self, disposition: str, messages: Path) -> Run:
        """Load with dlt. Because dlt is not a Singer target, a script decodes the messages."""
        script = Path(__file__).with_name("peer_dlt.py")
        python = environment("dlt", "dlt[postgres]==1.31.0") / "python"
        url = self.new_url("postgresql")
        folder = self.folder / f"dlt_{next(self._numbers)}"
        quiet = {"HOME": str(self.folder), "RUNTIME__DLTHUB_TELEMETRY": "false"}
        command: list[str | Path] = [python, script, url.replace("@", ":postgres@"), folder, disposition]
        return self._with_server(url, lambda: harness.run(command, stdin=messages, environment=quiet))

    def _with_server(self, url: str, run: Callable[[], Run]) -> Run:
        """Run a loader, and also measure the server's resources, or the file size of an embedded engine."""
        if not url.startswith("postgresql"):
            measured = run()
            path = Path(url.split("///", 1)[1])
            return replace(measured, server=ServerUsage(table_bytes=path.stat().st_size))
        with psycopg.connect(url, autocommit=True) as connection:
            # Start with a checkpoint. Otherwise the server would write the previous run's pages during this run.
            connection.execute("CHECKPOINT")
            before = harness.tree_cpu_seconds(self._postgres.pid), _wal_bytes(connection)
            measured = run()
            after = harness.tree_cpu_seconds(self._postgres.pid), _wal_bytes(connection)
            tables, indexes = connection.execute(SIZES).fetchone() or (0, 0)
        return replace(measured, server=ServerUsage(after[0] - before[0], after[1] - before[1], tables, indexes))

    def _generator_command(self, actions: int, first: int = 0, awards: int | None = None) -> list[str]:
        awards = awards or actions * data.AWARDS_PER_ACTION
        return list(map(str, [self._python, "-m", "benchmarks.data", "mix", actions, first, awards]))

    def _floor_command(self, url: str) -> list[str | Path]:
        return [self._python, "-m", "benchmarks.floor", url]

    def _run(self, command: Sequence[str | Path], messages: Path, settings: Mapping[str, Any]) -> Run:
        config = self._config(settings)
        return harness.run([*command, "--config", config], stdin=messages, environment={"LOGLEVEL": "WARNING"})

    def _config(self, settings: Mapping[str, Any]) -> Path:
        config = self.folder / f"config_{next(self._numbers)}.json"
        config.write_text(json.dumps(settings))
        return config


def _wal_bytes(connection: Connection) -> int:
    """The number of bytes that the server has written to its write-ahead log so far."""
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    return row[0] if row else 0


def peers(bench: Bench, engine: str, messages: Path) -> dict[str, Contender]:
    """Return the other loaders for an engine. They only load actions, and compute no balances."""
    if engine == "duckdb":
        target = environment("target-duckdb", "target-duckdb==0.8.0") / "target-duckdb"
        schema = {"default_target_schema": "main", "add_metadata_columns": True}
        return {"target-duckdb": partial(bench.peer, [target], engine, messages, **schema)}
    if engine == "sqlite":
        return {}
    meltano = environment("target-postgres", "meltanolabs-target-postgres==0.8.1") / "target-postgres"
    pipelinewise = environment("pipelinewise", "pipelinewise-target-postgres==2.1.2", "setuptools<81")
    schema = {"default_target_schema": "public"}
    return {
        "target-postgres, INSERT": partial(bench.peer, [meltano], engine, messages, **schema),
        "target-postgres, use_copy": partial(bench.peer, [meltano], engine, messages, use_copy=True, **schema),
        "pipelinewise": partial(bench.peer, [pipelinewise / "target-postgres"], engine, messages, **schema),
        "dlt, append": partial(bench.dlt, "append", messages),
        "dlt, merge": partial(bench.dlt, "merge", messages),
    }


def compare(bench: Bench, engines: Sequence[str], kind: str, rows: int, rounds: int, *, with_peers: bool) -> str:
    """Compare the minimal loader, target-crm and, with `with_peers`, other loaders on each engine."""
    messages = data.write_messages(bench.folder / f"{kind}.jsonl", kind, rows)
    parts = [f"{rows:,} actions, {kind}, {counted(rounds, 'round')}."]
    for engine in engines:
        others = peers(bench, engine, messages) if with_peers else {}
        if with_peers and not others:
            continue
        contenders: dict[str, Contender] = {
            FLOOR: partial(bench.floor, engine, messages),
            PROJECT: partial(bench.project, engine, messages),
            **others,
        }
        print(f"{engine}, {rows:,} actions", flush=True)
        runs = in_turn(contenders, rounds)
        parts += [f"**Into {engine}**", harness.table(runs, rows=rows, against=FLOOR)]
        if with_peers:
            plot = harness.bars(f"{rows:,} actions into {engine}", {k: seconds_of(v) for k, v in runs.items()}, "s")
            parts.append(harness.write_plot(engine, plot, f"Seconds to load {rows:,} actions into {engine}"))
    return "\n\n".join(parts)


def notations(bench: Bench, rows: int, rounds: int) -> str:
    """Compare loads of simple actions with loads of actions that are written in another notation."""
    messages = {
        kind: data.write_messages(bench.folder / f"{place}.jsonl", kind, rows)
        for place, kind in enumerate(("simple", data.SPACES, *data.NOTATIONS))
    }
    runs = in_turn({kind: partial(bench.project, "postgresql", each) for kind, each in messages.items()}, rounds)
    # Leave out the server's processor time, because the server does the same work for all notations.
    seconds = {kind: median(each.cpu_seconds for each in of_kind) for kind, of_kind in runs.items()}
    lines = [f"| {kind} | {each:.2f} | {each / seconds['simple']:.2f} |" for kind, each in seconds.items()]
    return "\n".join(
        [f"{rows:,} actions, {counted(rounds, 'round')}.\n", "| | CPU s | ÷ simple |", "|---|---:|---:|", *lines]
    )


def memory(bench: Bench, engines: Sequence[str], sizes: Sequence[int]) -> str:
    """Measure the peak memory of target-crm for different numbers of actions, and of the floor on DuckDB."""
    fills = {engine: (engine, bench.fill) for engine in engines}
    if "duckdb" in engines:
        fills[f"duckdb, {FLOOR}"] = "duckdb", bench.fill_with_floor
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in fills}
    for name, (engine, fill) in fills.items():
        for size in sizes:
            peak_mb = fill(bench.new_url(engine), size).peaks_mb[-1]
            print(f"memory: {size:,} actions into {name}: {peak_mb:.0f} MB", flush=True)
            curves[name].append((size / 1000, peak_mb))
    cells = {size: [f"{curve[place][1]:,.0f} MB" for curve in curves.values()] for place, size in enumerate(sizes)}
    plot = harness.curves(
        "Peak memory of target-crm", "thousand actions", "MB", {each: curves[each] for each in engines}
    )
    image = harness.write_plot("memory", plot, "Peak memory by the number of actions")
    return "\n\n".join([_by_size("actions", [*fills], cells), image])


def growth(bench: Bench, engines: Sequence[str], sizes: Sequence[int], rounds: int) -> str:
    """Measure the time of one more batch on ledgers of these sizes, and of `verify` and `rebuild` on the largest."""
    curves: dict[str, list[tuple[float, float]]] = {}
    verifications = [
        "| | simple aggregate | `verify` | `rebuild` |",
        "|---|---:|---:|---:|",
    ]
    awards = max(sizes) // ACTIONS_PER_AWARD
    for engine in engines:
        ledgers = {size: bench.new_url(engine) for size in sizes}
        for size, url in ledgers.items():
            print(f"growth: {engine}, {size:,}: filled in {bench.fill(url, size, 0, awards).seconds:.0f} s", flush=True)
        runs: dict[int, list[Run]] = {size: [] for size in sizes}
        for place in range(rounds):
            first = max(sizes) + place * BATCH_ROWS
            batch = data.write_messages(bench.folder / "batch.jsonl", "mix", BATCH_ROWS, first, awards)
            for size, url in ledgers.items():
                runs[size].append(bench.load(url, batch))
                print(f"growth: {engine}, {size:,}: {runs[size][-1].seconds:.2f} s", flush=True)
        curves[engine] = [(size / 1000, seconds_of(each)) for size, each in runs.items()]
        verifications.append(f"| {engine} | {_time_verification(bench, ledgers[max(sizes)])} |")
        print(verifications[-1], flush=True)
    cells = {
        size: [
            f"{curves[each][place][1]:.2f} s ({curves[each][place][1] / curves[each][0][1]:.2f})" for each in engines
        ]
        for place, size in enumerate(sizes)
    }
    plot = harness.curves(f"{BATCH_ROWS:,} more actions", "thousand actions in the ledger", "seconds", curves)
    image = harness.write_plot("growth", plot, "Cost of a batch by the ledger's size")
    explanation = (
        f"{max(sizes):,} actions of {awards:,} awards. In brackets: the time divided by the time of a program "
        "that only computes a simple aggregate: each award's sums, its number of actions, and the times of the first "
        "and the last action. All times include the start of the program."
    )
    return "\n\n".join(
        [_by_size("actions in the ledger", engines, cells), image, explanation, "\n".join(verifications)]
    )


def _time_verification(bench: Bench, url: str) -> str:
    """Measure a simple aggregate over the ledger, `verify` and `rebuild`; return the cells of a table row."""
    if url.startswith("postgresql"):
        # Vacuum now. Otherwise the server would do it soon after the load, while we measure.
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
    bench.aggregate(url)
    aggregate_seconds = bench.aggregate(url).seconds
    times = [bench.balances(url, command).seconds for command in ("verify", "rebuild")]
    return " | ".join(
        [f"{aggregate_seconds:.1f} s", *(f"{each:.1f} s ({each / aggregate_seconds:.1f})" for each in times)]
    )


def _by_size(title: str, engines: Sequence[str], cells: Mapping[int, Sequence[str]]) -> str:
    lines = [f"| {title} | {' | '.join(engines)} |", "|---:|" + "---:|" * len(engines)]
    return "\n".join([*lines, *(f"| {size:,} | {' | '.join(each)} |" for size, each in cells.items())])


@contextmanager
def new_bench(folder: str) -> Iterator[Bench]:
    """Yield a bench with its data in a new folder below `folder`, and delete the data at the end.

    PostgreSQL runs with fsync, so each commit waits for the disk.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pepper-crm-bench-", dir=folder) as own,
        PostgresServer(folder=Path(folder), durable=True) as server,
    ):
        yield Bench(Path(own), server)


def main() -> None:
    """Run the benchmarks of the target, or of the tap if the first argument is `tap`."""
    if sys.argv[1:2] == ["tap"]:
        tap_bench.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="./dev bench", description=__doc__, epilog="`./dev bench tap --help` describes the benchmarks of the tap."
    )
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"{', '.join(PARTS)}; default: all of them"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="number of actions to load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program (default: %(default)s)")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[100_000, 1_000_000, 10_000_000],
        help="numbers of actions for memory and growth",
    )
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES, help="default: all of them")
    parser.add_argument(
        "--folder",
        default=tempfile.gettempdir(),
        help="where to store the data of all engines; choose a folder on disk, not in memory (default: %(default)s)",
    )
    options = parser.parse_args()
    engines, rounds = options.engines, options.rounds
    measures: dict[str, Callable[[Bench], str]] = {
        "floors": lambda bench: compare(bench, engines, "mix", options.rows, rounds, with_peers=False),
        "simple": lambda bench: compare(bench, engines, "simple", options.rows, rounds, with_peers=False),
        "notations": lambda bench: notations(bench, options.rows, rounds),
        "peers": lambda bench: compare(bench, engines, "mix", options.rows, rounds, with_peers=True),
        "memory": lambda bench: memory(bench, engines, options.sizes),
        "growth": lambda bench: growth(bench, engines, options.sizes, rounds),
    }
    for part in options.parts or PARTS:
        with new_bench(options.folder) as bench:
            harness.write_section(f"target-{part}", measures[part](bench))


if __name__ == "__main__":
    main()
