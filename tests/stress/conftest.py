"""Fixtures of the stress tests, and the summary of cases at the end."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import stress as campaign
from tests.helpers.postgres import fast_folder
from tests.stress.runs import CanaryHandler, Forks, Place, PostgresPlace, SqlitePlace

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTS = "stress"


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The server that forks target-crm, started once per process."""
    with tempfile.TemporaryDirectory(prefix="pepper-crm-stress-", dir=fast_folder()) as folder:
        server = Forks(Path(folder))
        yield server
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty warehouse that can be emptied again. A test that requests it runs once per engine."""
    if request.param == "sqlite":
        place: Place = SqlitePlace(tmp_path)
    else:
        place = PostgresPlace(request.getfixturevalue("postgres_url"))
    yield place
    place.close()


@pytest.fixture(params=campaign.SHARDS)
def shard(request: pytest.FixtureRequest) -> int:
    """The number of a part of a long test."""
    return int(request.param)


@pytest.fixture(autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Attach a test's counts to its report, which may come from another process."""
    campaign.counts.clear()
    campaign.seconds.clear()
    yield
    for name, cases in campaign.counts.items():
        request.node.user_properties.append((COUNTS, (name, cases, campaign.seconds[name])))


@pytest.fixture(autouse=True)
def no_canary_in_the_log(counts: None) -> Iterator[None]:
    """Fail a test that logs a canary in this process. `Run.wait` searches the output of other processes."""
    handler = CanaryHandler()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    if handler.lines:
        campaign.count("log lines of this process, searched for secrets", cases=handler.lines)
    assert handler.found == []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of cases and their seconds, summed over all processes."""
    cases: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        for kind, value in getattr(report, "user_properties", ()):
            # Only the last report of a test has the counts, because a fixture adds them at teardown.
            if kind == COUNTS and report.when == "teardown":
                name, more_cases, more_seconds = value
                cases[name] += more_cases
                seconds[name] += more_seconds
    if cases:
        terminalreporter.section(f"stress tests, seed {campaign.SEED}")
    for name, number in sorted(cases.items()):
        terminalreporter.write_line(f"{name:<60}{number:>8,} cases{seconds[name]:>8.1f} s")
