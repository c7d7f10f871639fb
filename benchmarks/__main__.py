"""Measure the loader against its floors and its peers, and write tables and plots into docs/performance.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, harness, tap_bench
from benchmarks.harness import Run, environment, in_turn, seconds_of
from tests.postgres import PostgresServer, fast_folder, new_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Contender = Callable[[], Run]

ENGINES = ("postgresql", "sqlite", "duckdb")
PARTS = ("floors", "peers", "memory", "growth")
BATCH_ROWS = 10_000
FLOOR, PROJECT = "floor", "target-crm"
TARGET = [Path(sys.executable).with_name("target-crm")]
PYTHON = [sys.executable]


class Bench:
    """A folder for the data, and a PostgreSQL server whose data lies beside it; in memory where there is room."""

    def __init__(self, folder: Path, postgres_url: str) -> None:
        self.folder = folder
        self._postgres_url = postgres_url
        self._numbers = count()

    def new_url(self, engine: str) -> str:
        """An empty warehouse."""
        if engine != "postgresql":
            return f"{engine}:///{self.folder}/{next(self._numbers)}.{engine}"
        return new_database(self._postgres_url)

    def floor(self, engine: str, messages: Path) -> Run:
        """Load into an empty warehouse by the floor."""
        return harness.run([*PYTHON, "-m", "benchmarks.floor", self.new_url(engine)], stdin=messages)

    def load(self, url: str, messages: Path, **settings: Any) -> Run:
        """Load by this project."""
        return self._run(TARGET, messages, {"sqlalchemy_url": url, **settings})

    def project(self, engine: str, messages: Path) -> Run:
        """Load into an empty warehouse by this project."""
        return self.load(self.new_url(engine), messages)

    def peer(self, command: Sequence[str | Path], engine: str, messages: Path, **settings: Any) -> Run:
        """Load by another Singer target."""
        url = self.new_url(engine)
        if engine == "duckdb":
            return self._run(command, messages, {"filepath": url.removeprefix("duckdb:///"), **settings})
        port = int(self._postgres_url.rsplit(":", 1)[1])
        server = {"host": "127.0.0.1", "port": port, "user": "postgres", "password": "postgres"}
        database = url.rsplit("/", 1)[1]
        return self._run(command, messages, {**server, "database": database, "dbname": database, **settings})

    def dlt(self, disposition: str, messages: Path) -> Run:
        """Load by dlt, without Singer: it reads the lines itself."""
        script = Path(__file__).with_name("peer_dlt.py")
        python = environment("dlt", "dlt[postgres]==1.31.0") / "python"
        url = self.new_url("postgresql").replace("@", ":postgres@")
        folder = self.folder / f"dlt_{next(self._numbers)}"
        quiet = {"HOME": str(self.folder), "RUNTIME__DLTHUB_TELEMETRY": "false"}
        return harness.run([python, script, url, folder, disposition], stdin=messages, environment=quiet)

    def _run(self, command: Sequence[str | Path], messages: Path, settings: Mapping[str, Any]) -> Run:
        config = self.folder / f"config_{next(self._numbers)}.json"
        config.write_text(json.dumps(settings))
        return harness.run([*command, "--config", config], stdin=messages, environment={"LOGLEVEL": "WARNING"})


def peers(bench: Bench, engine: str, messages: Path) -> dict[str, Contender]:
    """Other loaders for an engine. None of them keeps a balance."""
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


def compare(bench: Bench, rows: int, rounds: int, *, with_peers: bool) -> str:
    """Each engine's floor, this project and, if asked for, the peers, in turn."""
    messages = data.write_messages(bench.folder / "actions.jsonl", rows)
    parts = [f"{rows:,} actions, {rounds} rounds."]
    for engine in ENGINES:
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


def memory(bench: Bench, sizes: Sequence[int]) -> str:
    """Peak memory by the number of actions."""
    curves: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    for size in sizes:
        messages = data.write_messages(bench.folder / "more.jsonl", size)
        for engine in ENGINES:
            peak_mb = bench.project(engine, messages).peak_mb
            print(f"memory: {size:,} actions into {engine}: {peak_mb:.0f} MB", flush=True)
            curves[engine].append((size / 1000, peak_mb))
    lines = ["| actions | " + " | ".join(ENGINES) + " |", "|---:|" + "---:|" * len(ENGINES)]
    for place, size in enumerate(sizes):
        lines.append(f"| {size:,} | " + " | ".join(f"{curves[each][place][1]:,.0f} MB" for each in ENGINES) + " |")
    plot = harness.curves("Peak memory", "thousand actions", "MB", curves)
    return "\n\n".join(["\n".join(lines), harness.write_plot("memory", plot, "Peak memory by the number of actions")])


def growth(bench: Bench, sizes: Sequence[int], rows: int, rounds: int) -> str:
    """What one more batch costs, by the size of the ledger that takes it."""
    curves: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    awards = max(sizes)
    for engine in ENGINES:
        ledgers = {size: bench.new_url(engine) for size in sizes}
        for size, url in ledgers.items():
            bench.load(url, data.write_messages(bench.folder / "ledger.jsonl", size, awards=awards))
        batches = (
            data.write_messages(bench.folder / f"batch_{place}.jsonl", rows, max(sizes) + place * rows, awards)
            for place in range(rounds)
        )
        runs: dict[int, list[Run]] = {size: [] for size in sizes}
        for batch in batches:
            for size, url in ledgers.items():
                runs[size].append(bench.load(url, batch))
                print(f"growth: {engine}, {size:,}: {runs[size][-1].seconds:.2f} s", flush=True)
        curves[engine] = [(size / 1000, seconds_of(each)) for size, each in runs.items()]
    lines = ["| actions in the ledger | " + " | ".join(ENGINES) + " |", "|---:|" + "---:|" * len(ENGINES)]
    for place, size in enumerate(sizes):
        cells = (
            f"{curves[each][place][1]:.2f} s ({curves[each][place][1] / curves[each][0][1]:.2f})" for each in ENGINES
        )
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    plot = harness.curves(f"{rows:,} more actions", "thousand actions in the ledger", "seconds", curves)
    return "\n\n".join(["\n".join(lines), harness.write_plot("growth", plot, "Cost of a batch by the ledger's size")])


@contextmanager
def new_bench() -> Iterator[Bench]:
    """A bench whose data is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="pepper-crm-bench-", dir=fast_folder()) as folder,
        PostgresServer() as server,
    ):
        yield Bench(Path(folder), server.url)


def main() -> None:
    """Measure what is asked for: of the loader, or, after the word `tap`, of the tap."""
    if sys.argv[1:2] == ["tap"]:
        tap_bench.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure; by default all")
    parser.add_argument("--rows", type=int, default=100_000, help="actions to load")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000], help="of ledgers")
    arguments = parser.parse_args()
    rows, rounds, sizes = arguments.rows, arguments.rounds, arguments.sizes
    with new_bench() as bench:
        measures = {
            "floors": lambda: compare(bench, rows, rounds, with_peers=False),
            "peers": lambda: compare(bench, rows, rounds, with_peers=True),
            "memory": lambda: memory(bench, sizes),
            "growth": lambda: growth(bench, sizes, BATCH_ROWS, rounds),
        }
        for part in arguments.parts or PARTS:
            harness.write_section(f"target-{part}", measures[part]())


if __name__ == "__main__":
    main()
