"""crm-balances forget: personal data is erased, balances stay, and reloading does not restore the data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import pytest
from sqlalchemy import MetaData, select

from target_crm.balances_cli.verify import verify
from target_crm.warehouse.connection import Warehouse
from tests.helpers.balances import run_balances
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, query, record, schema, snapshot, table

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME, OTHER_NAME = "Tom Jones", "Ann Smith"
TOM = {"_id": "u1", "fullName": NAME, "updatedAt": "2026-09-03T00:00:00Z"}
TEXT = {"type": ["string", "null"]}
TIME = {"type": ["string", "null"], "format": "date-time"}
USERS = schema(
    "users",
    {"_id": TEXT, "fullName": TEXT, "contacts": {"type": "array"}, "score": {"type": "integer"}, "updatedAt": TIME},
    "_id",
)
NAMED_AWARDS = schema("awards", {**json.loads(AWARDS)["schema"]["properties"], "holder": TEXT}, "_id")


def user(user_id: str, name: str, **more: Any) -> dict[str, Any]:
    return {"context": {"user": {"_id": user_id, "fullName": name}, **more}}


def award(award_id: str, user_id: str, name: str) -> str:
    fields = {"_id": award_id, "points": 5, "userId": user_id, "perkId": "p1", "updatedAt": "2026-09-01T00:00:00Z"}
    return record("awards", {**fields, "holder": name, "cachedUser": {"name": name}})


ABOUT_TOM = [
    *(ACTIONS, action("a1", delta=2, available=7, award="w1", **user("u1", NAME))),
    action("a2", "REDEEM_PERK", delta=1, available=6, award="w1", at="2026-10-02T00:00:00Z", **user("u1", NAME)),
    # An action without effect, an action that only names Tom's award, and another user's action that contains Tom's id.
    record("actions", {"_id": "a3", "type": "USER_UPDATED", **user("u1", NAME)}),
    record("actions", {"_id": "a4", "type": "AWARD_SEEN", "metadata": {"awardId": "w1"}, "note": NAME}),
    action("a5", award="w2", delta=2, available=7, **user("u2", "Zoe", friends=[{"_id": "u1", "fullName": NAME}])),
]
REJECTED = [
    action("r1", award="w1", available=True, **user("u1", NAME)),
    action("r2", award="w1", context={"user": {"fullName": NAME}}),
    action("a1", delta=3, available=9, award="w1", **user("u1", NAME)),
    f'{{"type": "RECORD", "stream": "actions", "record": {{"user": "u1", "name": "{NAME}',
]
OTHERS = [
    action("b1", award="w3", **user("U1", OTHER_NAME)),
    action("b2", award="w3", available=True, **user("u11", OTHER_NAME)),
]
SNAPSHOTS = [
    *(NAMED_AWARDS, award("w1", "u1", NAME), award("w9", "U1", OTHER_NAME)),
    *(USERS, record("users", {**TOM, "contacts": [NAME], "score": 3, "nick": NAME})),
    record("users", {"_id": "U1", "fullName": OTHER_NAME}),
]


@pytest.fixture
def crm(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Warehouse]:
    load(warehouse_url, [*ABOUT_TOM, *REJECTED, *OTHERS, *SNAPSHOTS])
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    opened = Warehouse(warehouse_url)
    yield opened
    opened.dispose()


def naming(crm: Warehouse, name: str) -> dict[str, int]:
    """The number of rows per table that contain a name."""
    with crm.read() as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        found = {
            each.name: sum(name in str(row) for row in connection.execute(select(each)))
            for each in metadata.tables.values()
        }
    return {name: rows for name, rows in found.items() if rows}


@pytest.mark.parametrize("spelling", [r'"gr\u00fcn/1"', r'"gr\u00fcn\/1"', r'"grün\/1"', '"grün/1"'])
def test_an_id_is_found_in_payloads_in_any_common_spelling(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    load(sqlite_url, [ACTIONS, action("a1", friends=["@"]).replace('"@"', spelling), action("a2")])

    assert run_balances(["forget", "grün/1", "--anywhere"]) == 0

    assert [row["payload"] is None for row in table(sqlite_url, "actions")] == [True, False]


@pytest.mark.parametrize(
    ("number", "is_erased"),
    [
        pytest.param('{"_id":123}', True, id="an-id"),
        pytest.param('{"friendId": 123, "name": "Tom"}', True, id="an-id-after-a-space"),
        pytest.param('{"friendId":1234}', False, id="a-longer-id"),
        pytest.param('{"points":123}', False, id="points"),
    ],
)
def test_a_numeric_id_is_found_in_payloads(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, number: str, *, is_erased: bool
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    load(
        warehouse_url, [ACTIONS, action("a1", user="123"), action("a2", award="w2", friend="@").replace('"@"', number)]
    )

    assert run_balances(["forget", "123"]) == 0

    assert [row["payload"] is None for row in table(warehouse_url, "actions")] == [True, is_erased]


def test_forget_erases_personal_data_and_keeps_balances(
    crm: Warehouse, warehouse_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert naming(crm, NAME) == {"actions": 5, "awards": 1, "users": 1, "rejected_records": 4}
    others = naming(crm, OTHER_NAME)
    times = query(warehouse_url, "SELECT _id, updated_at FROM users ORDER BY _id")
    balances, ledger = table(crm, "award_balances"), table(crm, "actions", "action_id", "user_id", "points_available")
    assert others == {"actions": 1, "awards": 1, "users": 1, "rejected_records": 1}
    capsys.readouterr()

    assert run_balances(["forget", "u1", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {
        "is_user": True,
        "erased": True,
        "actions": 4,
        "other_actions": 1,
        "awards": 1,
        "users": 1,
        "rejected_records": 4,
    }
    assert naming(crm, NAME) == {}
    assert naming(crm, OTHER_NAME) == others
    assert query(warehouse_url, "SELECT _id, updated_at FROM users ORDER BY _id") == times
    assert table(crm, "award_balances") == balances
    assert table(crm, "actions", "action_id", "user_id", "points_available") == ledger
    assert not verify(crm).drifted
    assert len(table(crm, "rejected_records", "reason")) == 5


def test_reloading_does_not_restore_erased_data(crm: Warehouse, warehouse_url: str) -> None:
    run_balances(["forget", "u1"])

    again = load(warehouse_url, [*ABOUT_TOM, *REJECTED])

    assert again.tallies["actions"] == "8 read = 0 applied + 5 duplicate + 0 superseded + 3 quarantined"
    assert naming(crm, NAME) == {}
    assert run_balances(["replay"]) == 0
    assert naming(crm, NAME) == {}
    assert not verify(crm).drifted


def test_completing_an_erased_action_does_not_restore_its_payload(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def actions(available: int | None) -> list[str]:
        tom = action("a1", available=available, **user("u1", NAME))
        return [ACTIONS, tom, action("b1", award="w2", available=available, **user("u2", OTHER_NAME))]

    load(warehouse_url, actions(None))
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    run_balances(["forget", "u1"])

    again = load(warehouse_url, actions(2))

    assert again.tallies["actions"] == "2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined"
    crm = Warehouse(warehouse_url)
    assert (naming(crm, NAME), naming(crm, OTHER_NAME)) == ({}, {"actions": 1})
    assert not verify(crm).drifted
    crm.dispose()


def test_an_action_that_contradicts_an_erased_one_is_quarantined_without_personal_data(
    crm: Warehouse, warehouse_url: str
) -> None:
    run_balances(["forget", "u1"])
    other = action("a2", "REDEEM_PERK", delta=1.5, available=9, at="2026-10-02T00:00:00Z", **user("u1", NAME))

    for _ in range(2):
        again = load(warehouse_url, [ACTIONS, other], max_rejected_fraction=1)

        assert again.tallies["actions"] == "1 read = 0 applied + 0 duplicate + 0 superseded + 1 quarantined"
        assert naming(crm, NAME) == {}
        rejected = [row["payload"] for row in table(crm, "rejected_records", "payload") if "a2" in row["payload"]]
        assert [json.loads(each)["metadata"] for each in rejected] == [
            {
                "awardId": "w1",
                "perkId": "p1",
                "pointsAvailable": 9,
                "pointsAdded": None,
                "pointsRedeemed": 1.5,
                "pointsRefunded": None,
            }
        ]
        assert run_balances(["replay"]) == 0


def test_dry_run_counts_what_would_be_erased_and_changes_nothing(
    crm: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run_balances(["forget", "u1", "--dry-run"]) == 0

    assert capsys.readouterr().out == (
        "Would erase personal data in 4 actions of the user, 1 other action that contains the id, 1 award, 1 user, "
        "4 quarantined records\n"
    )
    assert naming(crm, NAME) == {"actions": 5, "awards": 1, "users": 1, "rejected_records": 4}


def test_forgetting_twice_changes_nothing(crm: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    run_balances(["forget", "u1"])
    capsys.readouterr()

    assert run_balances(["forget", "u1"]) == 0

    assert capsys.readouterr().out == (
        "Erased personal data in 0 actions of the user, 0 other actions that contain the id, 0 awards, 0 users, "
        "0 quarantined records\n"
    )
    assert naming(crm, OTHER_NAME) != {}


@pytest.mark.parametrize("user_id", ["nobody", "u%", "u_"])
def test_unknown_user_exits_with_1_and_changes_nothing(
    crm: Warehouse, capsys: pytest.CaptureFixture[str], user_id: str
) -> None:
    before = naming(crm, NAME)
    capsys.readouterr()

    for options in ([], ["--dry-run"], ["--anywhere"]):
        assert run_balances(["forget", user_id, *options]) == 1
        assert capsys.readouterr().out == "No row has this id; nothing to erase\n"

    assert naming(crm, NAME) == before


@pytest.mark.parametrize(
    ("pasted", "payloads"),
    [
        pytest.param("w1", "6 payloads", id="an-award"),
        pytest.param("p1", "8 payloads", id="a-perk"),
        pytest.param("REWARD_EARNED", "7 payloads", id="a-type"),
        pytest.param("u11", "1 payload", id="a-user-of-the-quarantine-alone"),
    ],
)
def test_an_id_that_belongs_to_no_user_erases_nothing_unless_requested(
    crm: Warehouse, capsys: pytest.CaptureFixture[str], pasted: str, payloads: str
) -> None:
    before = naming(crm, NAME), naming(crm, OTHER_NAME)
    capsys.readouterr()

    for options in ([], ["--dry-run"]):
        assert run_balances(["forget", pasted, *options]) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert line == (
            f"No user has this id; nothing was erased. The id is in {payloads}, perhaps as the id of an award, a perk "
            "or a location. If it is a user's id, --anywhere erases these payloads"
        )
    assert (naming(crm, NAME), naming(crm, OTHER_NAME)) == before

    assert run_balances(["forget", pasted, "--anywhere", "--json"]) == 0
    erased = json.loads(capsys.readouterr().out)
    assert (erased["is_user"], erased["erased"], erased["actions"], erased["awards"]) == (False, True, 0, 0)
    assert f"{erased['other_actions'] + erased['rejected_records']} payload" in payloads
    assert run_balances(["forget", pasted, "--anywhere"]) == 1


def test_a_friend_who_is_only_in_other_users_payloads_can_be_erased(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    load(sqlite_url, [ACTIONS, action("a1", **user("u2", "Zoe", friends=[{"_id": "u1", "fullName": NAME}]))])
    capsys.readouterr()

    assert run_balances(["forget", "u1", "--anywhere"]) == 0

    assert capsys.readouterr().out == (
        "Erased personal data in 0 actions of the user, 1 other action that contains the id, 0 awards, 0 users, "
        "0 quarantined records\n"
    )
    assert query(sqlite_url, "SELECT payload FROM actions") == [(None,)]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(
            [ACTIONS, record("actions", {"_id": "a1", "type": "USER_UPDATED", **user("u1", NAME)})], id="action"
        ),
        pytest.param([NAMED_AWARDS, award("w1", "u1", NAME).replace('"points": 5', '"points": null')], id="award"),
        pytest.param([ACTIONS, USERS, record("users", {"_id": "u1", "fullName": NAME})], id="users"),
    ],
)
def test_a_user_who_occurs_in_only_one_table_is_known(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    load(sqlite_url, messages)

    assert run_balances(["forget", "u1"]) == 0

    opened = Warehouse(sqlite_url)
    assert naming(opened, NAME) == {}
    opened.dispose()


def test_an_award_whose_user_only_an_action_names_is_erased(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = record("awards", {"_id": "w1", "points": 5, "holder": NAME, "cachedUser": {"name": NAME}})
    load(warehouse_url, [NAMED_AWARDS, named, ACTIONS, action("a1")])
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    assert run_balances(["forget", "u1"]) == 0

    assert query(warehouse_url, "SELECT user_id, points FROM awards") == [(None, 5)]
    crm = Warehouse(warehouse_url)
    assert naming(crm, NAME) == {}
    crm.dispose()


def test_records_of_an_award_without_a_balance_are_erased(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_points = award("w1", "u1", NAME).replace('"points": 5', '"points": null')
    rejected = record("awards", {"_id": "w1", "points": "many", "holder": NAME})
    note = record("actions", {"_id": "a1", "type": "AWARD_SEEN", "metadata": {"awardId": "w1"}, "note": NAME})
    load(warehouse_url, [NAMED_AWARDS, without_points, rejected, ACTIONS, note], max_rejected_fraction=1)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    crm = Warehouse(warehouse_url)
    assert naming(crm, NAME) == {"actions": 1, "awards": 1, "rejected_records": 1}

    assert run_balances(["forget", "u1"]) == 0

    assert naming(crm, NAME) == {}
    crm.dispose()


def test_empty_user_id_is_a_usage_error() -> None:
    with pytest.raises(click.UsageError, match="is empty, expected an id"):
        run_balances(["forget", ""])


def test_forget_works_without_the_users_stream(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(warehouse_url, ABOUT_TOM)
    execute(warehouse_url, "ALTER TABLE awards ADD COLUMN notes VARCHAR(99)")
    load(warehouse_url, [AWARDS, snapshot("w1", 5, at="2026-09-01T00:00:00Z")])
    execute(warehouse_url, f"UPDATE awards SET notes = 'call {NAME}'")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    assert run_balances(["forget", "u1"]) == 0

    assert query(warehouse_url, "SELECT _id, user_id, points, notes FROM awards") == [("w1", "u1", 5, None)]
    crm = Warehouse(warehouse_url)
    assert naming(crm, NAME) == {}
    crm.dispose()
