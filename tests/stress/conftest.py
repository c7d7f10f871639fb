"""What the campaign's files share, and the count that it ends with."""

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
from tests.stress.target_runs import Eavesdropper, Forks, Place, PostgresPlace, SqlitePlace

if TYPE_CHECKING:
    from collections.abc import Iterator


COUNTED = "campaign"


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The server that forks target-crm."""
    with tempfile.TemporaryDirectory(prefix="pepper-crm-campaign-", dir=fast_folder()) as folder:
        server = Forks(Path(folder))
        yield server
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty warehouse that can be emptied again; a test that asks for it runs once per engine."""
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
def counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the report of a test, which may come from another process, tell what was counted in it."""
    campaign.counts.clear()
    campaign.seconds.clear()
    yield
    for name, cases in campaign.counts.items():
        request.node.user_properties.append((COUNTED, (name, cases, campaign.seconds[name])))


@pytest.fixture(autouse=True)
def unnamed(counted: None) -> Iterator[None]:
    """Fail a test whose runs in this process log a canary; runs of their own are searched in `Run.ended`."""
    eavesdropper = Eavesdropper()
    logging.getLogger().addHandler(eavesdropper)
    yield
    logging.getLogger().removeHandler(eavesdropper)
    if eavesdropper.lines:
        campaign.count("T7 lines of log, where runs share a process", cases=eavesdropper.lines)
    assert eavesdropper.found == []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The number of cases and the seconds that they took, in all processes together."""
    cases: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        for kind, value in getattr(report, "user_properties", ()):
            # What a fixture adds when it ends is in the last report alone.
            if kind == COUNTED and report.when == "teardown":
                name, more_cases, more_seconds = value
                cases[name] += more_cases
                seconds[name] += more_seconds
    if cases:
        terminalreporter.section(f"campaign, seed {campaign.SEED}")
    for name, number in sorted(cases.items()):
        terminalreporter.write_line(f"{name:<60}{number:>8,} cases{seconds[name]:>8.1f} s")
