"""From Pepper to balances, through the console scripts. The simulated Pepper knows every true balance."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from pepper_sandbox import faults
from pepper_sandbox.faults import Fault
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import Totals, World
from tests.helpers import guide
from tests.helpers.commands import RUN_SECONDS_MAX, Pipeline, command, environment, pepper_settings

NOW = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
SETTLE = timedelta(seconds=5)
SNAPSHOTS = Path(__file__).parents[1] / "snapshots"

EARNED, REDEEMED, REFUNDED = map(json.loads, (guide.REWARD_EARNED, guide.REDEEM_PERK, guide.AWARD_POINTS_REFUNDED))


def at(action: dict[str, Any], action_id: str, timestamp: str) -> dict[str, Any]:
    """Return an example with its own id and time, because the three examples in the guide share theirs."""
    return {**EARNED, **action, "_id": action_id, "when": {**EARNED["when"], "timestamp": timestamp}}


def query(warehouse_url: str, statement: str) -> list[tuple[Any, ...]]:
    engine = create_engine(warehouse_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text(statement))]
    engine.dispose()
    return rows


def stored_balances(warehouse_url: str) -> dict[str, Decimal]:
    rows = query(warehouse_url, "SELECT award_id, points FROM award_balances")
    return {award_id: Decimal(str(points)) for award_id, points in rows}


def stored_totals(warehouse_url: str) -> dict[str, Totals]:
    rows = query(
        warehouse_url,
        "SELECT award_id, earned_total, redeemed_total, refunded_total, action_count FROM award_balances "
        "WHERE action_count > 0",
    )
    return {award_id: Totals(*(Decimal(str(total)) for total in totals), count) for award_id, *totals, count in rows}


def everything_stored(warehouse_url: str) -> list[list[tuple[Any, ...]]]:
    """Return all rows that must not depend on how they were delivered."""
    return [
        query(
            warehouse_url,
            "SELECT award_id, user_id, perk_id, points, as_of, as_of_source, last_action_id, earned_total, "
            "redeemed_total, refunded_total, action_count, first_action_at, last_action_at "
            "FROM award_balances ORDER BY award_id",
        ),
        query(
            warehouse_url,
            "SELECT action_id, type, user_id, award_id, perk_id, occurred_at, effect, points_available, points_added, "
            "points_redeemed, points_refunded FROM actions ORDER BY action_id",
        ),
        query(warehouse_url, "SELECT _id, points, user_id, perk_id, updated_at FROM awards ORDER BY _id"),
        query(warehouse_url, "SELECT _id FROM perks ORDER BY _id"),
    ]


def test_every_balance_matches_peppers_after_a_full_load_and_after_a_poll(warehouse_url: str, tmp_path: Path) -> None:
    world = World(seed=11, users=30, days=8, now=NOW)
    with Sandbox(world) as sandbox:
        pipeline = Pipeline(sandbox, warehouse_url, tmp_path)
        pipeline.run()
        assert stored_balances(warehouse_url) == world.balances()
        world.advance(timedelta(days=2))
        pipeline.run()
        assert stored_balances(warehouse_url) == world.balances()
        polled = world.award_totals(after=NOW - SETTLE - timedelta(seconds=300), until=world.now - SETTLE)
        assert stored_totals(warehouse_url) == polled
        verified = pipeline.verify()
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["awards"] == len(world.balances())


def test_a_perk_missing_in_two_runs_is_marked_as_deleted_in_the_warehouse(tmp_path: Path) -> None:
    world = World(seed=16, users=5, days=1, now=NOW)
    before = {perk["_id"] for perk in world.perks()}
    with Sandbox(world) as sandbox:
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'crm.db'}", tmp_path)

        def marked_after_a_run() -> set[str]:
            pipeline.run()
            return {
                perk_id
                for (perk_id,) in query(
                    pipeline.warehouse_url, "SELECT _id FROM perks WHERE _sdc_deleted_at IS NOT NULL"
                )
            }

        assert marked_after_a_run() == set()
        world.advance(timedelta(days=15))
        deleted = before - {perk["_id"] for perk in world.perks()}
        assert deleted
        assert marked_after_a_run() == set(), "a single full read can miss a perk on a shifted page"
        assert marked_after_a_run() == deleted
    assert stored_balances(pipeline.warehouse_url) == world.balances()


def test_overlapping_runs_store_the_same_rows_as_one_run(tmp_path: Path) -> None:
    world = World(seed=12, users=40, days=10, now=NOW)
    start = {"TAP_PEPPER_START_DATE": (NOW - timedelta(days=11)).isoformat()}
    with Sandbox(world) as sandbox:
        folder = tmp_path / "overlapping"
        folder.mkdir()
        settings = {**start, "TAP_PEPPER_LOOKBACK_SECONDS": str(2 * 24 * 3600)}
        overlapping = Pipeline(sandbox, f"sqlite:///{tmp_path / 'overlapping.db'}", folder, settings)
        for _ in range(4):
            overlapping.run()
            world.advance(timedelta(hours=7))
        overlapping.run()
        once = Pipeline(sandbox, f"sqlite:///{tmp_path / 'once.db'}", tmp_path, start)
        once.run()
    assert stored_balances(overlapping.warehouse_url) == world.balances()
    assert stored_totals(overlapping.warehouse_url) == world.award_totals(until=world.now - SETTLE)
    assert everything_stored(overlapping.warehouse_url) == everything_stored(once.warehouse_url)


@pytest.mark.parametrize(
    "active_faults",
    [
        pytest.param([faults.rows_shuffled(), faults.last_row_repeated()], id="rows-shuffled-and-repeated"),
        pytest.param([faults.filters_ignored("when.timestamp", "updatedAt")], id="filters-ignored"),
        pytest.param([faults.points_as_strings(), faults.fields_unknown()], id="strings-and-unknown-fields"),
        pytest.param([faults.connection_cut().nth(2, 5), faults.server_error().nth(3)], id="broken-connections"),
    ],
)
def test_balances_match_peppers_despite_faults(active_faults: list[Fault], tmp_path: Path) -> None:
    world = World(seed=13, users=15, days=5, now=NOW)
    with Sandbox(world, faults=active_faults) as sandbox:
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path / 'crm.db'}", tmp_path)
        pipeline.run()
        world.advance(timedelta(hours=30))
        pipeline.run()
    assert stored_balances(pipeline.warehouse_url) == world.balances()


def test_the_examples_of_peppers_guide_become_balances(tmp_path: Path) -> None:
    actions = [
        EARNED,
        at(REDEEMED, "yyyy", "2021-03-05T13:38:00.000Z"),
        at(REFUNDED, "zzzz", "2021-03-05T13:39:00.000Z"),
    ]
    serve = Fault("the guide's actions", lambda request, answer: answer(request).with_payload({"actions": actions}))
    nothing = Fault("no rows", lambda request, answer: answer(request).with_payload({"items": []}))
    now = datetime(2021, 3, 5, 14, tzinfo=UTC)
    warehouse_url = f"sqlite:///{tmp_path / 'crm.db'}"
    with Sandbox(World(users=1, days=0, now=now), faults=[serve.on("/actions"), nothing.on("/awards")]) as sandbox:
        Pipeline(sandbox, warehouse_url, tmp_path, {"TAP_PEPPER_START_DATE": "2021-03-05"}).run()
    assert query(
        warehouse_url,
        "SELECT award_id, user_id, perk_id, points, earned_total, redeemed_total, refunded_total, action_count, "
        "last_action_id FROM award_balances ORDER BY award_id",
    ) == [
        ("xxx", "xxxx", "xxx", 15, 0, 16, 5, 2, "zzzz"),
        ("xxxxx", "xxxx", "xxxxx", 2, 2, 0, 0, 1, "xxxx"),
    ]
    (stored,) = query(warehouse_url, "SELECT payload FROM actions WHERE action_id = 'xxxx'")
    payload = stored[0] if isinstance(stored[0], dict) else json.loads(stored[0])
    assert payload == {**EARNED, "when_timestamp": "2021-03-05T13:37:52.194Z"}


def test_the_messages_of_a_run_match_the_snapshot(tmp_path: Path) -> None:
    """`GOLDEN=renew ./dev test tests/end_to_end/test_whole_path.py` updates the snapshot. Review the diff."""
    world = World(seed=15, users=2, days=3, now=NOW)
    with Sandbox(world) as sandbox:
        ran = subprocess.run(
            command("tap-pepper", "--config", "ENV"),
            env=environment(**pepper_settings(sandbox), TAP_PEPPER_START_DATE="2026-03-26"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=True,
        )
    messages = [json.loads(line) for line in ran.stdout.splitlines()]
    for message in messages:
        if message["type"] == "RECORD":
            message["time_extracted"] = "…"
    lines = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    golden = SNAPSHOTS / "messages.jsonl"
    if environment().get("GOLDEN") == "renew":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(lines)
    assert lines == golden.read_text()
