"""Days that the tap never read: `verify` reports the hole, and a later run closes it. The console scripts run here."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import Pipeline, run_script
from tests.helpers.target import query

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

START = datetime(2026, 10, 1, tzinfo=UTC)
NOW = START + timedelta(days=6)


def balances(pipeline: Pipeline, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run crm-balances."""
    url = pipeline.warehouse_url
    return run_script("crm-balances", *arguments, cwd=pipeline.folder, TARGET_CRM_SQLALCHEMY_URL=url)


def coverage(pipeline: Pipeline) -> dict[str, Any]:
    """The output of crm-balances coverage --json."""
    found: dict[str, Any] = json.loads(balances(pipeline, "coverage", "--json").stdout)
    return found


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def loaded(pipeline: Pipeline) -> set[str]:
    return {action_id for (action_id,) in query(pipeline.warehouse_url, "SELECT action_id FROM actions")}


def existing(world: World, after: datetime, until: datetime) -> set[str]:
    return {action["_id"] for action in world.actions(after=after, until=until)}


def test_days_that_a_wrong_state_skips_are_found_and_read(tmp_path: Path) -> None:
    world = World(seed=20, users=30, days=6, now=NOW)
    with Sandbox(world) as sandbox:
        start = {"TAP_PEPPER_START_DATE": START.isoformat()}
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'crm.db'}", tmp_path, start)
        pipeline.run()
        assert balances(pipeline, "verify").returncode == 0

        world.advance(timedelta(days=9))
        state = json.loads(pipeline.state.read_text())
        state["bookmarks"]["actions"]["replication_key_value"] = "2026-10-14T00:00:00.000Z"
        pipeline.state.write_text(json.dumps(state))
        pipeline.run()

        (hole,) = coverage(pipeline)["holes"]
        assert (moment(hole["from"]), moment(hole["until"])) == (
            NOW - timedelta(seconds=5),
            datetime(2026, 10, 13, 23, 55, tzinfo=UTC),
        )
        verified = balances(pipeline, "verify")
        assert verified.returncode == 1
        assert (
            "actions between 2026-10-06 23:59:55 and 2026-10-13 23:55 UTC were never read (7 days)" in verified.stdout
        )
        missing = existing(world, moment(hole["from"]), moment(hole["until"]))
        assert missing
        assert not missing & loaded(pipeline)

        pipeline.state.write_text(balances(pipeline, "coverage", "--state").stdout)
        before = len(sandbox.requests)
        pipeline.run()
        found = coverage(pipeline)

        # The tap reads only the hole, with the lookback before it, and the lookback that every run reads again.
        _, *asked = (
            moment(request.parameter("when.timestamp.gt") or "")
            for request in sandbox.requests[before:]
            if request.path == "/actions"
        )
        asked_from, reread_from = moment(hole["from"]) - timedelta(seconds=300), world.now - timedelta(seconds=305)
        assert asked
        assert min(asked) == asked_from
        assert all(each < moment(hole["until"]) or each == reread_from for each in asked)

        assert found["holes"] == []
        (interval,) = found["intervals"]
        assert (moment(interval["from"]), moment(interval["until"])) == (START, world.now - timedelta(seconds=5))
        assert loaded(pipeline) == existing(world, START, world.now - timedelta(seconds=5))
        assert balances(pipeline, "verify").returncode == 0

        # The next run continues from the state of this run.
        world.advance(timedelta(hours=1))
        pipeline.run()
        assert moment(coverage(pipeline)["intervals"][0]["until"]) == world.now - timedelta(seconds=5)


def test_an_earlier_start_date_completes_a_seeded_ledger(tmp_path: Path) -> None:
    world = World(seed=21, users=20, days=6, now=NOW)
    with Sandbox(world) as sandbox:
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'crm.db'}", tmp_path)
        pipeline.run()
        seeded = balances(pipeline, "verify")
        assert seeded.returncode == 0
        assert "The ledger begins at the first of these times" in seeded.stdout

        world.advance(timedelta(days=1))
        pipeline.tap_settings = {"TAP_PEPPER_START_DATE": "2026-10-02"}
        pipeline.run()

        (interval,) = coverage(pipeline)["intervals"]
        assert moment(interval["from"]) == START + timedelta(days=1)
        assert loaded(pipeline) == existing(world, START + timedelta(days=1), world.now - timedelta(seconds=5))

        before = len(sandbox.requests)
        pipeline.run()
        assert sum(request.path == "/actions" for request in sandbox.requests[before:]) == 2


def test_a_state_that_coverage_prints_replaces_a_lost_state_and_finds_late_actions(tmp_path: Path) -> None:
    world = World(seed=24, users=30, days=6, now=NOW, late_fraction=0.5, late_seconds_max=7200)
    with Sandbox(world) as sandbox:
        settings = {"TAP_PEPPER_START_DATE": START.isoformat(), "TAP_PEPPER_LOOKBACK_SECONDS": "7200"}
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'crm.db'}", tmp_path, settings)
        pipeline.run()
        (interval,) = coverage(pipeline)["intervals"]
        world.advance(timedelta(hours=3))
        late = existing(world, START, moment(interval["until"])) - loaded(pipeline)
        assert late

        pipeline.state.write_text(balances(pipeline, "coverage", "--state").stdout)
        del settings["TAP_PEPPER_START_DATE"]
        pipeline.run()

        assert late <= loaded(pipeline)
        (interval,) = coverage(pipeline)["intervals"]
        assert (moment(interval["from"]), moment(interval["until"])) == (START, world.now - timedelta(seconds=5))
        assert balances(pipeline, "verify").returncode == 0


def test_actions_that_were_read_without_points_are_a_hole_until_they_are_read_again(tmp_path: Path) -> None:
    world = World(seed=25, users=30, days=6, now=NOW)
    with Sandbox(world) as sandbox:
        settings = {"TAP_PEPPER_START_DATE": START.isoformat()}
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'crm.db'}", tmp_path, settings)
        pipeline.run()
        world.advance(timedelta(hours=12))
        settings["TAP_PEPPER_STREAM_MAPS"] = json.dumps({"actions": {"metadata": None}})
        pipeline.run()
        world.advance(timedelta(hours=12))
        del settings["TAP_PEPPER_STREAM_MAPS"]
        pipeline.run()

        assert balances(pipeline, "verify").returncode == 1
        (hole,) = coverage(pipeline)["holes"]
        assert moment(hole["from"]) == NOW - timedelta(seconds=5)

        pipeline.state.write_text(balances(pipeline, "coverage", "--state").stdout)
        pipeline.run()
        assert balances(pipeline, "verify").returncode == 0
        without_effect = "SELECT count(*) FROM actions WHERE effect IS NULL AND type = 'REDEEM_PERK'"
        assert query(pipeline.warehouse_url, without_effect) == [(0,)]


def test_a_new_warehouse_does_not_inherit_the_coverage_in_the_state(tmp_path: Path) -> None:
    world = World(seed=22, users=10, days=3, now=NOW)
    with Sandbox(world) as sandbox:
        start = {"TAP_PEPPER_START_DATE": "2026-10-04"}
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'old.db'}", tmp_path, start)
        pipeline.run()
        world.advance(timedelta(hours=2))
        pipeline.warehouse_url = f"sqlite:///{tmp_path / 'new.db'}"
        pipeline.run()

        (hole,) = coverage(pipeline)["holes"]
        assert moment(hole["from"]).replace(microsecond=0) == START + timedelta(days=3)
        assert moment(hole["until"]) == NOW - timedelta(seconds=305)
        (interval,) = coverage(pipeline)["intervals"]
        assert interval["from"] == hole["until"]

        pipeline.state.write_text(balances(pipeline, "coverage", "--state").stdout)
        pipeline.run()
        assert coverage(pipeline)["holes"] == []
        assert loaded(pipeline) == existing(world, START + timedelta(days=3), world.now - timedelta(seconds=5))
        assert balances(pipeline, "verify").returncode == 0


def test_actions_missing_from_a_restored_warehouse_are_a_hole_even_if_the_state_is_newer(tmp_path: Path) -> None:
    world = World(seed=23, users=30, days=6, now=NOW)
    with Sandbox(world) as sandbox:
        warehouse, backup = tmp_path / "crm.db", tmp_path / "backup.db"
        settings = {"TAP_PEPPER_START_DATE": START.isoformat(), "TAP_PEPPER_LOOKBACK_SECONDS": "86400"}
        pipeline = Pipeline(sandbox, f"sqlite:///{warehouse}", tmp_path, settings)
        pipeline.run()
        shutil.copy(warehouse, backup)
        before = loaded(pipeline)
        world.advance(timedelta(hours=16))
        pipeline.run()
        lacking = loaded(pipeline) - before
        assert lacking

        shutil.copy(backup, warehouse)
        pipeline.run()

        holes = coverage(pipeline)["holes"]
        assert lacking <= {
            key for each in holes for key in existing(world, moment(each["from"]), moment(each["until"]))
        }
        assert balances(pipeline, "verify").returncode == 1

        pipeline.state.write_text(balances(pipeline, "coverage", "--state").stdout)
        pipeline.run()
        assert lacking <= loaded(pipeline)
        assert balances(pipeline, "verify").returncode == 0
