"""The project's meltano.yml runs a full load, polls from the stored state, and compares the balances with Pepper's."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import PROJECT, RUN_SECONDS_MAX, command, environment, pepper_settings
from tests.helpers.target import query

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NOW = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)


def meltano(settings: Mapping[str, str], *arguments: str, stdin: str = "") -> str:
    ran = subprocess.run(
        command("meltano", *arguments),
        env=environment(**settings),
        cwd=PROJECT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_meltano_runs_a_full_load_and_then_polls_from_its_state(tmp_path: Path) -> None:
    world = World(seed=14, users=30, days=5, now=NOW)
    warehouse_url = f"sqlite:///{tmp_path / 'crm.db'}"

    def stored_balances() -> dict[str, object]:
        return dict(query(warehouse_url, "SELECT award_id, points FROM award_balances"))

    with Sandbox(world) as sandbox:
        settings = {
            **pepper_settings(sandbox),
            "TARGET_CRM_SQLALCHEMY_URL": warehouse_url,
            "MELTANO_SYS_DIR_ROOT": str(tmp_path / "meltano"),
            "MELTANO_DATABASE_URI": f"sqlite:///{tmp_path / 'meltano.db'}",
            "XDG_STATE_HOME": str(tmp_path),
        }
        meltano(settings, "run", "perks", "loyalty")
        assert stored_balances() == world.balances()
        assert len(query(warehouse_url, "SELECT _id FROM perks")) == len(world.perks())
        earlier_requests = len(sandbox.requests)
        world.advance(timedelta(hours=20))
        meltano(settings, "run", "loyalty")
        later_requests = [request for request in sandbox.requests[earlier_requests:] if request.path == "/awards"]
        verified = meltano(settings, "invoke", "target-crm:verify")
        awards = meltano(settings, "invoke", "tap-pepper--audit")
        compared = meltano(settings, "invoke", "target-crm:compare", stdin=awards)
    assert stored_balances() == world.balances()
    assert later_requests
    assert all(request.parameter("updatedAt") for request in later_requests), "the second run resumes from the state"
    assert "actions: OK" in verified
    assert f"Compared {len(world.balances())} awards with Pepper: OK" in compared
