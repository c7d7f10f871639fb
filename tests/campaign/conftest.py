"""What the campaign's files share, and the count that it ends with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import campaign
from tests.campaign.target_runs import Forks, Place, PostgresPlace, SqlitePlace
from tests.conftest import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The server that forks target-crm."""
    with tempfile.TemporaryDirectory(prefix="pepper-crm-campaign-") as folder:
        server = Forks(Path(folder))
        yield server
        server.close()


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty warehouse that can be emptied again; a test that asks for it runs once per engine."""
    if request.param == "sqlite":
        place: Place = SqlitePlace(tmp_path)
    else:
        place = PostgresPlace(request.getfixturevalue("postgres_url"))
    yield place
    place.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The number of cases and the seconds that they took."""
    if campaign.counts:
        terminalreporter.section(f"campaign, seed {campaign.SEED}")
    for name, number in sorted(campaign.counts.items()):
        terminalreporter.write_line(f"{name:<60}{number:>8,} cases{campaign.seconds[name]:>8.1f} s")
