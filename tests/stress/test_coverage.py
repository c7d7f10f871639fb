"""Random histories of runs. The recorded coverage must equal the windows whose rows were requested and committed."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from unittest import mock

from pepper_sandbox.world import World
from target_crm.balances_cli.coverage import coverage_in, state_to_resume
from target_crm.balances_cli.verify import verify
from target_crm.errors import WarehouseError
from target_crm.loader.target import TargetCrm
from target_crm.warehouse.connection import Warehouse
from tests.helpers.target import ACTIONS, AWARDS, action, state, table
from tests.stress import run_cases, size
from tests.stress.tap_world import SETTLE, Killed, Pepper, SimulatedClock, run_simulated

if TYPE_CHECKING:
    from random import Random

    from pepper_sandbox.api import Request, Response

NOW = datetime(2026, 10, 10, tzinfo=UTC)
CASES = size(3, 150)
STEPS = size(8, 15)
LOYALTY = ["AWARD_POINTS_REFUNDED", "REDEEM_PERK", "REWARD_EARNED"]
FILTERS: list[list[str]] = [[], [], [], LOYALTY, ["REWARD_EARNED"]]
STATES = ["latest"] * 6
STATES += ["lost", "old", "set forward", "set back", "of an older version", "merged with an old one", "of the coverage"]

Span = tuple[datetime, datetime]


class CrashError(Exception):
    """Raised to end the target, as a crash would."""


class RequestLog(Pepper):
    """A Pepper that logs the windows of actions in the current run. The first request only asks for the time."""

    def begin_run(self, *, kill_at: int | None = None) -> None:
        super().begin_run(kill_at=kill_at)
        self.windows: list[Span] = []
        self._knows_time = False

    def answer(self, request: Request) -> Response:
        response = super().answer(request)
        if request.path == "/actions":
            after, until = (
                datetime.fromisoformat(request.parameter(f"when.timestamp.{edge}") or "") for edge in ("gt", "lte")
            )
            if self._knows_time and (after, until) not in self.windows:
                self.windows.append((after, until))
            self._knows_time = True
        return response


class StateObserver(io.BytesIO):
    """The standard output of the tap. It notes, for each STATE, how many windows the tap had read by then."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__()
        self._log = log
        self.windows_at_state: list[int] = []
        self.written = b""

    def write(self, chunk: Any) -> int:
        self.windows_at_state += [len(self._log.windows)] * bytes(chunk).count(b'{"type":"STATE"')
        self.written += chunk
        return len(chunk)

    def writelines(self, lines: Any) -> None:
        self.write(b"".join(lines))


def merged(spans: list[Span]) -> list[Span]:
    """Return intervals that contain the same instants, without overlaps."""
    found: list[Span] = []
    for after, until in sorted(spans):
        if found and after <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], until)
        else:
            found.append((after, until))
    return found


@dataclass
class History:
    """A warehouse, the coverage that it must have, and the states of its runs."""

    random: Random
    world: World
    all_come_in_time: bool
    warehouse: Warehouse = field(default_factory=lambda: Warehouse("sqlite://"))
    states: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    expected: dict[tuple[str, ...], list[Span]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pepper = RequestLog(self.world)

    def step(self) -> None:
        """Let time pass. Then run once, or load the messages of a foreign tap."""
        self.world.advance(timedelta(minutes=self.random.choice([5, 5, 30, 300])))
        if self.random.random() < 0.1:
            foreign = {"bookmarks": {"actions": {"replication_key_value": "2026-10-12T00:00:00Z"}}}
            self.load([ACTIONS, action("foreign", at="2026-09-01T00:00:00Z"), state(foreign)])
            self.load([AWARDS, state(self.states[-1])])
        else:
            self.poll(self.chosen_state(), self.random.choice(FILTERS))
        self.check()

    def chosen_state(self) -> dict[str, Any]:
        """Return a state to begin with: one of the last two, as if there were two loaders, or an unusual state."""
        chosen = deepcopy(self.random.choice(self.states[-2:]))
        kind = self.random.choice(STATES)
        bookmark = chosen.get("bookmarks", {}).get("actions")
        if kind == "lost" or not bookmark:
            return {}
        if kind == "old":
            return deepcopy(self.random.choice(self.states))
        if kind == "of the coverage":
            with suppress(WarehouseError):
                return self.printed_state()
        if kind.startswith("set "):
            hours = self.random.randrange(1, 30) * (1 if kind == "set forward" else -1)
            moved = datetime.fromisoformat(bookmark["replication_key_value"]) + timedelta(hours=hours)
            moved = min(moved, self.world.now - SETTLE)
            bookmark["replication_key_value"] = moved.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        elif kind == "of an older version":
            for name in (
                "covered_from",
                "covered_until",
                "read",
                "action_types",
                "skipped_start_date",
                "backfill_from",
            ):
                bookmark.pop(name, None)
        elif kind == "merged with an old one":
            old = self.random.choice(self.states).get("bookmarks", {}).get("actions", {})
            chosen["bookmarks"]["actions"] = {**old, **bookmark}
        return chosen

    def printed_state(self) -> dict[str, Any]:
        """Return the state that `coverage --state` prints."""
        with self.warehouse.read() as connection:
            return state_to_resume(connection, self.warehouse.tables)

    def poll(self, first: dict[str, Any], types: list[str], **settings: object) -> None:
        """Run tap and target. Either of them may be killed."""
        observer = StateObserver(self.pepper)
        run = run_simulated(
            self.pepper,
            SimulatedClock(self.world),
            *("actions", "awards"),
            state=first,
            kill_at=self.random.randrange(2, 12) if not settings and self.random.random() < 0.3 else None,
            output=observer,
            **{
                "concurrency": 1,
                "page_size": 50,
                "window_hours": self.random.choice([1, 6, 24]),
                "lookback_seconds": self.random.choice([0, 300]),
                "action_types": types,
                "start_date": self.random.choice([None, "2026-10-09", "2026-10-08", "2026-10-07"]),
                **settings,
            },
        )
        assert run.error is None or isinstance(run.error, Killed)
        lines = observer.written.decode().splitlines()
        states = [message["value"] for message in map(json.loads, lines) if message["type"] == "STATE"]
        committed, emitted = self.load(lines, 0 if settings else self.random.choice([0, 0, 1, 2, 3]))
        # This is the last STATE of a committed batch.
        last = max((number for number, each in enumerate(states) if each in committed), default=None)
        if last is not None:
            windows = self.pepper.windows[: observer.windows_at_state[last]]
            self.expected.setdefault(tuple(sorted(types)), []).extend(windows)
        if emitted:
            self.states.append(emitted[-1])

    def load(self, lines: list[str], crash_at: int = 0) -> tuple[list[Any], list[Any]]:
        """Load messages. The run crashes at the batch with the number `crash_at`, right before or after the commit.

        Returns:
            The STATE of each committed batch, and the STATEs that were emitted.
        """
        settings = {"sqlalchemy_url": "sqlite://", "batch_size_rows": self.random.choice([3, 40, 1000])}
        target = TargetCrm(config=settings, warehouse=self.warehouse)
        writer, is_committed = target.writer, self.random.random() < 0.5
        write, write_in, committed, batches = writer.write, writer._write, list[Any](), list[Any]()

        def crashing_write_in(batch: Any, connection: Any) -> Any:
            result = write_in(batch, connection)
            if len(batches) == crash_at and not is_committed:
                raise CrashError
            return result

        def crashing_write(batch: Any) -> None:
            batches.append(batch)
            write(batch)
            committed.append(json.loads(batch.state) if batch.state else None)
            if len(batches) == crash_at:
                raise CrashError

        output = io.StringIO()
        with (
            redirect_stdout(output),
            mock.patch.multiple(writer, write=crashing_write, _write=crashing_write_in),
            suppress(CrashError),
        ):
            target.listen(io.StringIO("".join(f"{line}\n" for line in lines)))
        return committed, [json.loads(line) for line in output.getvalue().splitlines()]

    def recorded(self) -> dict[tuple[str, ...], list[Span]]:
        found: dict[tuple[str, ...], list[Span]] = {}
        for row in table(self.warehouse, "coverage"):
            types = tuple(json.loads(row["action_types"] or "[]"))
            span = row["covered_from"], row["covered_until"]
            # The state from `coverage --state` may begin where another filter was read. Ignore such a fraction of a ms.
            if span[1] - span[0] >= timedelta(milliseconds=1):
                found.setdefault(types, []).append(span)
        return {types: sorted(spans) for types, spans in found.items()}

    def check(self) -> None:
        """Fail unless the coverage equals what was read and committed, and the ledger has all these actions."""
        recorded = self.recorded()
        assert recorded == {types: merged(spans) for types, spans in self.expected.items() if spans}
        if not recorded or not self.all_come_in_time:
            return
        ledger = {row["action_id"] for row in table(self.warehouse, "actions", "action_id")}
        for types, spans in recorded.items():
            for after, until in spans:
                read = self.world.actions(after=after, until=until)
                assert ledger >= {row["_id"] for row in read if not types or row["type"] in types}


def run_history(random: Random, seed: int) -> None:
    late_fraction = random.choice([0, 0.2])
    history = History(
        random, World(seed=seed, users=3, days=3, now=NOW, late_fraction=late_fraction), not late_fraction
    )
    for _ in range(STEPS):
        history.step()
    # Close one hole after the other. None must be left at the end.
    for _ in range(4 * STEPS):
        if not verify(history.warehouse).coverage.holes:
            break
        history.poll(history.printed_state(), [], start_date=None)
        history.check()
    with history.warehouse.read() as connection:
        assert coverage_in(connection, history.warehouse.tables).holes == []
    assert not verify(history.warehouse).failed
    history.warehouse.dispose()


def test_coverage_is_what_was_read_and_committed(shard: int) -> None:
    run_cases("histories with coverage", range(CASES), run_history, shard)
