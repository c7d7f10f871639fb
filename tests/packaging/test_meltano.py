"""The project's meltano.yml runs a full load, polls from the stored state, and compares the balances with Pepper's."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import PROJECT, pepper_settings, run_script
from tests.helpers.target import query

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NOW = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)


def meltano(settings: Mapping[str, str], *arguments: str, stdin: str = "") -> str:
    return run("meltano", settings, *arguments, stdin=stdin)


def run(program: str, settings: Mapping[str, str], *arguments: str, stdin: str = "") -> str:
    ran = run_script(program, *arguments, cwd=PROJECT, stdin=stdin, **settings)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def settings_of(sandbox: Sandbox, folder: Path) -> dict[str, str]:
    """The environment of a project whose warehouse and Meltano state are in a folder."""
    return {
        **pepper_settings(sandbox),
        "TARGET_CRM_SQLALCHEMY_URL": f"sqlite:///{folder / 'crm.db'}",
        "MELTANO_SYS_DIR_ROOT": str(folder / "meltano"),
        "MELTANO_DATABASE_URI": f"sqlite:///{folder / 'meltano.db'}",
        "XDG_STATE_HOME": str(folder),
    }


def test_meltano_runs_a_full_load_and_then_polls_from_its_state(tmp_path: Path) -> None:
    world = World(seed=14, users=30, days=5, now=NOW)
    warehouse_url = f"sqlite:///{tmp_path / 'crm.db'}"

    def stored_balances() -> dict[str, object]:
        return dict(query(warehouse_url, "SELECT award_id, points FROM award_balances"))

    with Sandbox(world) as sandbox:
        settings = settings_of(sandbox, tmp_path)
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


def test_meltano_reads_a_hole_with_the_state_that_coverage_prints(tmp_path: Path) -> None:
    world = World(seed=15, users=5, days=3, now=NOW)
    with Sandbox(world) as sandbox:
        settings = settings_of(sandbox, tmp_path)

        def coverage(option: str) -> str:
            return run("crm-balances", settings, "coverage", option)

        meltano(settings, "run", "loyalty")
        world.advance(timedelta(days=2))
        # The state is lost, and there is no start_date.
        meltano(settings, "run", "--full-refresh", "loyalty")
        assert len(json.loads(coverage("--json"))["holes"]) == 1

        meltano(settings, "state", "set", "--force", "dev:tap-pepper-to-target-crm", coverage("--state"))
        meltano(settings, "run", "loyalty")

        assert json.loads(coverage("--json"))["holes"] == []
