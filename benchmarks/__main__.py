"""Load the same actions with target-crm and with the stock path, in one run: the ratio is what counts."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.resources import files
from itertools import islice
from pathlib import Path

from pepper_sandbox.world import World

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
ACTIONS_PER_USER = 110


def write_messages(path: Path, rows: int) -> int:
    """Write actions of a sandbox world as Singer messages; returns how many they are."""
    schema = json.loads((files("tap_pepper") / "schemas" / "actions.json").read_text())
    world = World(users=rows // ACTIONS_PER_USER + 1, now=NOW)
    count = 0
    with path.open("w") as output:
        print(
            json.dumps({"type": "SCHEMA", "stream": "actions", "schema": schema, "key_properties": ["_id"]}),
            file=output,
        )
        for action in islice(world.actions(), rows):
            record = {**action, "when_timestamp": action["when"]["timestamp"]}
            print(json.dumps({"type": "RECORD", "stream": "actions", "record": record}, default=float), file=output)
            count += 1
        print(json.dumps({"type": "STATE", "value": {}}), file=output)
    return count


def seconds_to_load(command: list[str], messages: Path, database: Path) -> float:
    """How long a target takes to load the messages into a new SQLite database."""
    config = database.with_suffix(".json")
    config.write_text(json.dumps({"sqlalchemy_url": f"sqlite:///{database}"}))
    started = time.perf_counter()
    with messages.open("rb") as source:
        subprocess.run(  # noqa: S603 - the two commands below
            [*command, "--config", str(config)],
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            env={**os.environ, "LOGLEVEL": "WARNING"},
        )
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="actions to load")
    rows = parser.parse_args().rows
    commands = {
        "stock SDK target": [sys.executable, "-m", "benchmarks.stock"],
        "target-crm": [sys.executable, "-c", "from target_crm.target import main; main()"],
    }
    with tempfile.TemporaryDirectory(prefix="pepper-crm-bench-") as folder:
        messages = Path(folder) / "actions.jsonl"
        print(f"writing {rows:,} actions …", flush=True)
        count = write_messages(messages, rows)
        size_mb = messages.stat().st_size / 1e6
        print(f"{count:,} actions, {size_mb:,.0f} MB, into SQLite; start-up included")
        print(f"{'':<20}{'seconds':>9}{'rows/s':>11}{'ratio':>8}")
        baseline = None
        for name, command in commands.items():
            seconds = seconds_to_load(command, messages, Path(folder) / f"{name.split()[0]}.db")
            baseline = baseline or seconds
            print(f"{name:<20}{seconds:>9.1f}{count / seconds:>11,.0f}{baseline / seconds:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
