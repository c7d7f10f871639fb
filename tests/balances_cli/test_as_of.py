"""crm-balances as-of: the balances at a time equal those of a load that ended then."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import click
import pytest

from target_crm.sql import balances
from target_crm.warehouse.connection import Warehouse
from tests.helpers.balances import run_balances
from tests.helpers.target import ACTIONS, AWARDS, DELTAS, action, execute, load, snapshot, table

if TYPE_CHECKING:
    from pathlib import Path

BEGAN = datetime(2026, 10, 1, tzinfo=UTC)


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def known(url: str, moment: datetime) -> list[dict[str, Any]]:
    crm = Warehouse(url)
    with crm.read() as connection:
        rows = connection.execute(balances.as_of(crm.tables), {"moment": moment}).mappings()
        found = [dict(row) for row in rows]
    crm.dispose()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_as_of_equals_a_load_that_ended_then(warehouse_url: str, tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    ticks = [BEGAN + timedelta(seconds=random.randrange(100)) for _ in range(150)]
    history = [
        (tick, action(f"a{n}", random.choice([*DELTAS]), delta=1, available=n, award=f"w{n % 20}", at=iso(tick)))
        for n, tick in enumerate(ticks)
    ]
    # The warehouse keeps only the newest snapshot of an award, so each award has one here.
    history += [(tick, snapshot(f"w{n}", 1000 + n, at=iso(tick))) for n, tick in enumerate(ticks[:30])]
    random.shuffle(history)
    load(warehouse_url, [ACTIONS, AWARDS, *(message for _, message in history)])

    for seconds in (0, 7, 50, 93, 100):
        moment = BEGAN + timedelta(seconds=seconds)
        then = f"sqlite:///{tmp_path / f'{seconds}.db'}"
        load(then, [ACTIONS, AWARDS, *(message for tick, message in history if tick <= moment)])
        assert known(warehouse_url, moment) == table(then, "award_balances")


def test_as_of_omits_awards_not_yet_observed_or_already_deleted(warehouse_url: str) -> None:
    messages = [
        *(AWARDS, snapshot("w1", 5, at="2026-10-01T12:00:00Z"), snapshot("w2", 7, at="2026-10-02T12:00:00Z"), ACTIONS),
        action("a1", available=4, award="w1", at="2026-10-03T12:00:00Z"),
    ]
    load(warehouse_url, messages)
    execute(warehouse_url, "UPDATE awards SET _sdc_deleted_at = '2026-10-04 00:00:00' WHERE _id = 'w2'")

    def points(at: str) -> dict[str, float]:
        moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
        return {row["award_id"]: float(row["points"]) for row in known(warehouse_url, moment)}

    assert points("2026-10-01T11:59:59") == {}
    assert points("2026-10-01T12:00:00") == {"w1": 5}
    assert points("2026-10-03T11:59:59") == {"w1": 5, "w2": 7}
    assert points("2026-10-03T12:00:00") == {"w1": 4, "w2": 7}
    assert points("2026-10-04T00:00:00") == {"w1": 4}


def test_as_of_prints_csv_or_json(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(warehouse_url, [ACTIONS, *(action(f"a{n}", delta="0.25", available=n, award=f"w{n:04}") for n in range(1500))])
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    capsys.readouterr()

    assert run_balances(["as-of", "2026-10-01T14:00:00+02:00"]) == 0
    in_csv = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert run_balances(["as-of", "2026-10-01T12:00Z", "--json"]) == 0
    in_json = json.loads(capsys.readouterr().out, parse_float=Decimal)

    assert [row["award_id"] for row in in_csv] == [row["award_id"] for row in in_json]
    assert len(in_json) == 1500
    assert (in_csv[7]["points"], in_csv[7]["earned_total"], in_csv[7]["as_of"]) == (
        "7.0000",
        "0.2500",
        "2026-10-01T12:00:00+00:00",
    )
    assert (in_json[7]["points"], in_json[7]["as_of"]) == (Decimal(7), "2026-10-01T12:00:00Z")
    assert run_balances(["as-of", "2026-10-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    with pytest.raises(click.UsageError, match="is not an ISO 8601 time"):
        run_balances(["as-of", "yesterday"])
