"""What every engine has to do in the same way. A run of these cases writes the table in docs/warehouses.md."""

from __future__ import annotations

import gc
import json
import subprocess
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, seed, settings
from sqlalchemy import MetaData, Table, event, inspect, literal_column, make_url, select, text

from target_crm.balances_cli.ddl import missing_statements
from target_crm.balances_cli.forget import forget
from target_crm.balances_cli.report import page as report
from target_crm.balances_cli.report import queries as figures
from target_crm.balances_cli.status import status
from target_crm.balances_cli.verify import rebuild, verify
from target_crm.errors import WarehouseError
from target_crm.loader.target import TargetCrm
from target_crm.records.schemas import FORMER_NAMES
from target_crm.sql import balances
from target_crm.warehouse.stream_names import tables_of_streams
from tests.conformance.conftest import empty
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, record, schema, snapshot, state, table
from tests.stress import size
from tests.stress.deliveries import check_delivery, combined_deliveries, delivery_settings
from tests.stress.scenario import as_input, make_scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from target_crm.warehouse.connection import Warehouse
    from tests.conformance.engines import Engine

TEXT, INTEGER, NUMBER, BOOLEAN, OBJECT = (
    {"type": [name, "null"]} for name in ("string", "integer", "number", "boolean", "object")
)
TIME = {"type": ["string", "null"], "format": "date-time"}
OWN = ("actions", "awards", "award_balances", "rejected_records")


def contents(crm: Warehouse) -> dict[str, Any]:
    return {name: [row for row in table(crm, name) if name != "rejected_records"] for name in OWN}


def balance(crm: Warehouse, award: str = "w1") -> dict[str, Any]:
    return next(row for row in table(crm, "award_balances") if row["award_id"] == award)


def rows_of(crm: Warehouse, name: str, *columns: str) -> list[tuple[Any, ...]]:
    """Return the rows of a stream's table, ordered by the first column."""
    with crm.read() as connection:
        quote = connection.dialect.identifier_preparer.quote
        chosen = ", ".join(map(quote, columns))
        query = f"SELECT {chosen} FROM {quote(name)} ORDER BY {quote(columns[0])}"
        return [tuple(row) for row in connection.execute(text(query))]


def test_repeated_and_overlapping_histories_in_any_order_give_the_expected_balances(
    shared: Warehouse, engine: Engine
) -> None:
    @seed(engine.title)
    @settings(delivery_settings, max_examples=size(3, engine.deliveries))
    @given(combined_deliveries())
    def check(delivery: Any) -> None:
        check_delivery(shared, delivery)
        assert not verify(shared).drifted
        delivered = table(shared, "award_balances")
        rebuild(shared)
        assert table(shared, "award_balances") == delivered

    check()


class Cut(BaseException):
    """Raised at the point at which the run is killed."""


def load_cut_off(crm: Warehouse, messages: list[str], after_statements: int) -> int:
    """Load until this many writing statements have been executed; return how many were."""
    executed = 0

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal executed
        executed += not statement.lstrip().startswith(("SELECT", "PRAGMA", "SHOW", "BEGIN"))
        if executed == after_statements:
            raise Cut

    event.listen(crm._engine, "after_cursor_execute", count)
    with suppress(Cut):
        load(crm, messages)
    event.remove(crm._engine, "after_cursor_execute", count)
    # A process that ends closes its transactions.
    gc.collect()
    return executed


def test_a_load_that_is_interrupted_and_repeated_gives_the_same_tables(crm: Warehouse) -> None:
    before = [AWARDS, snapshot("w1", 3), ACTIONS, action("a0", available=5, at="2026-10-01T12:00:01Z")]
    batch = [
        AWARDS,
        snapshot("w1", 4, at="2026-10-01T12:00:03Z"),
        snapshot("w2", 9),
        ACTIONS,
        action("a1", available=7, at="2026-10-01T12:00:02Z"),
        action("a2", "REDEEM_PERK", available=1, at="2026-10-01T12:00:04Z"),
        action("a0", available=6, at="2026-10-01T12:00:01Z"),
    ]
    load(crm, before)
    statements = load_cut_off(crm, batch, after_statements=-1)
    expected = contents(crm)
    assert expected["award_balances"][0]["points"] == Decimal(1)
    assert expected["award_balances"][0]["earned_total"] == Decimal(4)

    for after_statements in range(1, statements + 1, size(max(1, statements // 3), 1)):
        empty(crm)
        load(crm, before)
        load_cut_off(crm, batch, after_statements)
        load(crm, batch)
        assert contents(crm) == expected, f"cut off after statement {after_statements}"
    assert not verify(crm).drifted


def test_columns_that_are_missing_from_the_schema_survive_an_interrupted_load(crm: Warehouse) -> None:
    wide, narrow = (schema("t_kept", {"_id": TEXT, "title": TEXT, **more}, "_id") for more in ({"price": INTEGER}, {}))
    before = [
        wide,
        record("t_kept", {"_id": "1", "title": "Tea", "price": 3}, at="2026-10-02T00:00:00Z"),
        record("t_kept", {"_id": "2", "title": "Cake", "price": 4}, at="2026-10-02T00:00:00Z"),
    ]
    older = json.loads(record("t_kept", {"_id": "1", "title": "Coffee"}, at="2026-10-01T00:00:00Z"))
    newer = record("t_kept", {"_id": "2", "title": "Cakes"}, at="2026-10-03T00:00:00Z")
    batch = [narrow, json.dumps({**older, "version": 7}), newer]
    load(crm, before)
    statements = load_cut_off(crm, batch, after_statements=-1)

    for after_statements in range(1, statements + 1, size(max(1, statements // 3), 1)):
        empty(crm)
        load(crm, before)
        load_cut_off(crm, batch, after_statements)
        load(crm, batch)
        kept = rows_of(crm, "t_kept", "_id", "title", "price", "_sdc_table_version")
        assert kept == [("1", "Tea", 3, 7), ("2", "Cakes", 4, None)], f"cut off after statement {after_statements}"


def test_a_late_event_is_counted_but_does_not_replace_a_newer_balance(crm: Warehouse) -> None:
    load(crm, [AWARDS, snapshot("w1", 10), ACTIONS, action("b", delta=5, available=15, at="2026-10-03T00:00:00Z")])
    load(crm, [AWARDS, snapshot("w1", 9, at="2026-09-01T00:00:00Z")])
    load(crm, [ACTIONS, action("a", delta=2, available=7, at="2026-10-02T00:00:00Z")])

    found = balance(crm)
    assert (found["points"], found["earned_total"], found["action_count"]) == (Decimal(15), Decimal(7), 2)
    assert found["first_action_at"] == datetime(2026, 10, 2, tzinfo=UTC)
    assert found["last_action_id"] == "b"


def test_events_with_the_same_time_are_ordered_by_source_and_then_by_id(crm: Warehouse) -> None:
    ids = ["Z", "a", "é", "~", "10", "9"]
    actions = [action(each, delta=1, available=place) for place, each in enumerate(ids)]
    load(crm, [AWARDS, snapshot("w1", 99), ACTIONS, *actions], batch_size_rows=2)

    found = balance(crm)
    assert (found["last_action_id"], found["as_of_source"]) == (max(ids, key=str.encode), "action")
    assert found["points"] == Decimal(ids.index(max(ids, key=str.encode)))


def test_ids_stay_distinct_if_only_the_case_or_a_trailing_space_or_an_emoji_differs(crm: Warehouse) -> None:
    ids = ["w", "W", "w ", "é", "e\u0301", "e", "😀", "😁", "ß", "ss", "ﬁ", "i", "İ"]
    actions = [action(each, delta=number, available=number, award=each) for number, each in enumerate(ids)]
    load(crm, [AWARDS, *(snapshot(each, 50, at="2026-09-01T00:00:00Z") for each in ids), ACTIONS, *actions, *actions])

    found = {row["award_id"]: row["points"] for row in table(crm, "award_balances")}
    assert found == {each: Decimal(number) for number, each in enumerate(ids)}
    assert {row["action_id"] for row in table(crm, "actions")} == set(ids)
    assert len(table(crm, "awards")) == len(ids)


def test_a_string_is_updated_even_if_only_its_case_or_an_accent_changes(crm: Warehouse) -> None:
    t = schema("t_texts", {"_id": TEXT, "name": TEXT}, "_id")
    load(crm, [t, record("t_texts", {"_id": "1", "name": "cafe"}, at="2026-10-01T00:00:00Z")])
    for number, name in enumerate(["Cafe", "Café", "Café ", "Café 😀", ""]):
        changed = record("t_texts", {"_id": "1", "name": name}, at=f"2026-10-02T00:00:0{number}Z")
        assert load(crm, [t, changed]).tallies["t_texts"].startswith("1 read = 1 applied"), name
        assert rows_of(crm, "t_texts", "_id", "name") == [("1", name)]


def test_times_with_any_offset_keep_their_microseconds(crm: Warehouse) -> None:
    times = ["2026-10-01T12:00:00.123456Z", "2026-10-01T14:00:00.123457+02:00", "2026-10-01T01:30:00.123458-10:30"]
    for number, at in enumerate(times):
        load(crm, [ACTIONS, action(f"a{number}", available=number, at=at, award=f"w{number}")])

    found = [row["occurred_at"] for row in table(crm, "actions", "action_id", "occurred_at")]
    noon = datetime(2026, 10, 1, 12, tzinfo=UTC)
    assert found == [noon + timedelta(microseconds=each) for each in (123456, 123457, 123458)]
    assert [row["as_of"] for row in table(crm, "award_balances")] == found


def test_points_are_exact_to_four_decimal_places_in_their_whole_range(crm: Warehouse) -> None:
    largest = Decimal("99999999999.9999")
    load(
        crm,
        [
            AWARDS,
            snapshot("low", str(-largest)),
            snapshot("tenth", "0.1"),
            ACTIONS,
            action("a", delta=str(largest), available=str(largest), award="high"),
            *(action(f"t{n}", delta="0.1", available=f"{n * 0.1:.1f}", award="tenths") for n in range(1, 11)),
            *(action(f"q{n}", delta="0.0001", available="0.0001", award="quanta") for n in range(3)),
        ],
        batch_size_rows=4,
    )

    found = {row["award_id"]: (row["points"], row["earned_total"]) for row in table(crm, "award_balances")}
    assert found["high"] == (largest, largest)
    assert found["low"] == (-largest, 0)
    assert found["tenth"] == (Decimal("0.1"), 0)
    assert found["tenths"][1] == Decimal(1)
    assert found["quanta"] == (Decimal("0.0001"), Decimal("0.0003"))
    assert not verify(crm).drifted


def test_missing_values_become_null_and_change_no_balance(crm: Warehouse) -> None:
    perks = schema("t_perks", {"_id": TEXT, "title": TEXT, "price": NUMBER, "on": BOOLEAN, "rules": OBJECT}, "_id")
    load(
        crm,
        [
            perks,
            record("t_perks", {"_id": "p1", "title": None}),
            AWARDS,
            record("awards", {"_id": "w1", "points": None}),
            record("awards", {"_id": "w2", "points": 3, "userId": None}),
            ACTIONS,
            record("actions", {"_id": "bare"}),
            record("actions", {"_id": "legacy", "type": "REWARD_EARNED", "metadata": None, "context": None}),
        ],
    )

    assert rows_of(crm, "t_perks", "_id", "title", "price", "on", "rules") == [("p1", None, None, None, None)]
    (found,) = table(crm, "award_balances")
    assert (found["award_id"], found["user_id"], found["last_action_id"], found["action_count"]) == (
        "w2",
        None,
        None,
        0,
    )
    assert [row["effect"] for row in table(crm, "actions")] == [None, None]


def test_a_record_with_sixty_columns_is_stored_unchanged(crm: Warehouse) -> None:
    kinds = [
        (TEXT, "x" * 3000),
        (INTEGER, 2**53 + 1),
        (NUMBER, 0.5),
        (BOOLEAN, True),
        (OBJECT, {"a": [1, {"é": None}]}),
    ]
    names = [f"field{number}" for number in range(60)]
    properties = {name: kinds[number % 5][0] for number, name in enumerate(names)}
    fields = {name: kinds[number % 5][1] for number, name in enumerate(names)}
    load(crm, [schema("t_wide", {"_id": TEXT, **properties}, "_id"), record("t_wide", {"_id": "p1", **fields})])

    (found,) = rows_of(crm, "t_wide", "_id", *names)
    for number, value in enumerate(found[1:]):
        kind, expected = kinds[number % 5]
        got = json.loads(value) if kind is OBJECT and isinstance(value, str) else value
        assert got == expected, names[number]


def test_reserved_words_and_very_long_or_similar_names_can_be_property_names(crm: Warehouse) -> None:
    long = "aVeryLongNameOfAFieldThatSomebodyMadeUpInAMeetingThatWentOnAndOnAndOnAndOn"
    properties = dict.fromkeys(
        ("select", "order", "Group", "user", f"{long}One", f"{long}Two", "fooBar", "foo_bar"), TEXT
    )
    fields = {each: each for each in properties}
    stream = "t_order_by_" + "x" * 48
    load(crm, [schema(stream, {"_id": TEXT, **properties}, "_id"), record(stream, {"_id": "1", **fields})])

    with crm.read() as connection:
        # On some engines, names are shorter.
        name = tables_of_streams(connection, crm.tables)[stream]
        columns = [each["name"] for each in inspect(connection).get_columns(name)]
    (found,) = rows_of(crm, name, "_id", *[each for each in columns if not each.startswith("_")])
    assert sorted(found[1:]) == sorted(fields.values())


def test_a_new_property_in_the_schema_adds_a_column(crm: Warehouse) -> None:
    first, second = (
        schema("t_growing", {"_id": TEXT, **more}, "_id")
        for more in ({"price": INTEGER}, {"price": INTEGER, "title": TEXT})
    )
    load(crm, [first, record("t_growing", {"_id": "1", "price": 1})])
    load(crm, [second, record("t_growing", {"_id": "2", "price": 2, "title": "Tea"})])

    assert rows_of(crm, "t_growing", "_id", "price", "title") == [("1", 1, None), ("2", 2, "Tea")]


def test_an_integer_column_can_be_widened_to_numbers(crm: Warehouse, engine: Engine) -> None:
    if not engine.widens:
        pytest.skip(f"{engine.title}: cannot widen integers to numbers; a load reports it")
    whole, fraction = (schema("t_evolving", {"_id": TEXT, "price": kind}, "_id") for kind in (INTEGER, NUMBER))
    load(crm, [whole, record("t_evolving", {"_id": "1", "price": 1})])
    load(crm, [fraction, record("t_evolving", {"_id": "2", "price": 2.5})])

    assert [(key, float(price)) for key, price in rows_of(crm, "t_evolving", "_id", "price")] == [
        ("1", 1.0),
        ("2", 2.5),
    ]


def test_an_unsupported_type_change_is_rejected_before_a_row_is_loaded(crm: Warehouse) -> None:
    load(crm, [schema("t_typed", {"_id": TEXT, "v": BOOLEAN}, "_id"), record("t_typed", {"_id": "1", "v": True})])
    changed = schema("t_typed", {"_id": TEXT, "v": TIME}, "_id")

    with pytest.raises(WarehouseError, match="'v' holds boolean, but the new schema says time"):
        load(crm, [changed, record("t_typed", {"_id": "2", "v": "2026-10-01T00:00:00Z"})])

    assert [key for key, _ in rows_of(crm, "t_typed", "_id", "v")] == ["1"]


@pytest.mark.parametrize("interrupted", [False, True], ids=["whole", "interrupted"])
def test_an_upgrade_renames_the_metadata_columns_of_every_stream(crm: Warehouse, interrupted: bool) -> None:
    perks = schema("t_upgraded", {"_id": TEXT, "title": TEXT}, "_id")
    load(crm, [perks, record("t_upgraded", {"_id": "p1", "title": "Tea"}), AWARDS, snapshot("w1", 5)])
    former_names = dict(list(FORMER_NAMES.items())[interrupted:])
    with crm.write() as connection:
        for name in ("t_upgraded", "_crm_staging_t_upgraded", "awards", "_crm_staging_awards"):
            named = Table(name, MetaData())
            for former, present in former_names.items():
                connection.execute(text(crm.adapter.rename_column(connection.dialect, named, present, former)))
        connection.execute(crm.tables.version.delete())
        connection.execute(crm.tables.version.insert().values(version=literal_column("2")))

    with crm.write() as connection:
        connection.execute(text("CREATE VIEW t_view AS SELECT _id FROM t_upgraded WHERE _deleted_at IS NULL"))
    if not crm.adapter.views_follow_renames:
        with pytest.raises(WarehouseError, match="view 't_view' reads the column _deleted_at"):
            crm.set_up()
    else:
        crm.set_up()
        assert rows_of(crm, "t_view", "_id") == [("p1",)]
    with crm.write() as connection:
        connection.execute(text("DROP VIEW t_view"))
    crm.set_up()

    load(crm, [perks, record("t_upgraded", {"_id": "p1", "title": "Cake"}), AWARDS, snapshot("w2", 4)])
    assert rows_of(crm, "t_upgraded", "_id", "title", "_sdc_extra") == [("p1", "Cake", None)]
    assert [row["points"] for row in table(crm, "award_balances", "points")] == [5, 4]
    assert crm.lacks(balances=True) == []


@pytest.mark.parametrize("hard_delete", [False, True], ids=["softly", "hard"])
def test_rows_missing_from_a_complete_read_are_deleted_or_marked_until_they_return(
    crm: Warehouse, hard_delete: bool
) -> None:
    perks = schema("t_versioned", {"_id": TEXT, "title": TEXT}, "_id")
    versions = [[("p1", "Tea"), ("p2", "Cake")], [("p1", "Tea")], [("p1", "Tea"), ("p2", "Cake")]]
    found = []
    for number, rows in enumerate(versions, 1):
        records = [
            json.dumps({**json.loads(record("t_versioned", {"_id": key, "title": title})), "version": number})
            for key, title in rows
        ]
        activate = json.dumps({"type": "ACTIVATE_VERSION", "stream": "t_versioned", "version": number})
        load(crm, [perks, *records, activate], hard_delete=hard_delete)
        stored = rows_of(crm, "t_versioned", "_id", "_sdc_deleted_at")
        found.append([(key, deleted_at is not None) for key, deleted_at in stored])

    both = [("p1", False), ("p2", False)]
    assert found == [both, [("p1", False)] if hard_delete else [("p1", False), ("p2", True)], both]


def test_rows_are_appended_to_a_table_without_a_key(crm: Warehouse) -> None:
    visits = schema("t_visits", {"number": INTEGER})
    for _ in range(2):
        load(crm, [visits, *(record("t_visits", {"number": number}) for number in (1, 2))])

    assert rows_of(crm, "t_visits", "number") == [(1,), (1,), (2,), (2,)]


def test_invalid_and_contradictory_actions_are_quarantined(crm: Warehouse) -> None:
    bad = action("bad", delta="many")
    load(crm, [ACTIONS, action("a", available=5), action("a", available=6), bad, bad])
    again = load(crm, [ACTIONS, action("a", available=5, context=None), action("new", context=None)])

    assert again.tallies == {"actions": "2 read = 0 applied + 1 duplicate + 0 superseded + 1 quarantined"}
    rejected = table(crm, "rejected_records", "reason")
    assert sorted(row["reason"] for row in rejected) == [
        "context.user._id is missing",
        "metadata.pointsAdded is text, expected points",
        "the ledger has this _id with another award, effect, time or points",
    ]
    assert balance(crm)["points"] == Decimal(5)


def test_an_action_without_points_is_replaced_when_it_arrives_with_points(crm: Warehouse) -> None:
    later = "2026-10-02T12:00:00Z"
    whole = [action("a", available=5), action("b", available=9, at=later)]
    load(crm, [ACTIONS, action("a", metadata=None), action("c", metadata=None)])
    load(crm, [ACTIONS, action("b", available=9, at=later, type=None), *whole, action("a", available=6)])
    again = load(crm, [ACTIONS, *whole, action("c", metadata=None)])

    assert again.tallies == {"actions": "3 read = 0 applied + 3 duplicate + 0 superseded + 0 quarantined"}
    assert {name: balance(crm)[name] for name in ("points", "earned_total", "action_count")} == {
        "points": Decimal(9),
        "earned_total": Decimal(4),
        "action_count": 2,
    }
    stored = table(crm, "actions", "action_id", "effect", "points_available")
    assert [tuple(row.values()) for row in stored] == [
        ("a", "earned", Decimal(5)),
        ("b", "earned", Decimal(9)),
        ("c", None, None),
    ]
    assert [row["reason"] for row in table(crm, "rejected_records", "reason")] == [
        "the ledger has this _id with another award, effect, time or points"
    ]


def test_the_views_show_sums_per_user_and_unexplained_points(crm: Warehouse) -> None:
    load(
        crm,
        [
            AWARDS,
            snapshot("w1", 10),
            snapshot("w2", 0.5),
            ACTIONS,
            action("a", delta=2, available=12, at="2026-10-02T00:00:00Z"),
        ],
    )

    with crm.read() as connection:
        users = connection.execute(text("SELECT user_id, points, award_count, action_count FROM user_balances")).all()
        drift = connection.execute(
            text("SELECT award_id, explained, unexplained FROM award_balance_drift ORDER BY award_id")
        ).all()
    assert [(user, float(points), awards, actions) for user, points, awards, actions in users] == [("u1", 12.5, 2, 1)]
    assert [(award, float(a), float(b)) for award, a, b in drift] == [("w1", 2.0, 10.0), ("w2", 0.0, 0.5)]


def test_a_loader_that_may_not_create_tables_uses_tables_that_another_user_created(
    engine: Engine, new_url: Callable[[], str]
) -> None:
    if not engine.loader:
        pytest.skip(f"{engine.title}: has no users here")
    url, perks = make_url(new_url()), schema("t_perks", {"_id": TEXT, "title": TEXT}, "_id")
    owner, loader = (each.render_as_string(hide_password=False) for each in (url, url.set(username="loader")))
    target = TargetCrm(config={"sqlalchemy_url": owner})
    messages = [f"{message}\n" for message in (perks, AWARDS, ACTIONS)]
    for statement in missing_statements(target, messages):
        execute(owner, statement)
    for statement in engine.loader:
        execute(owner, statement.format(database=url.database))

    load(loader, [perks, record("t_perks", {"_id": "p1"}), AWARDS, snapshot("w2"), ACTIONS, action("a1")])

    assert [row["award_id"] for row in table(loader, "award_balances")] == ["w1", "w2"]
    with pytest.raises(WarehouseError, match="denied"):
        load(loader, [schema("t_more", {"_id": TEXT}, "_id")])


def test_a_session_stages_rows_while_another_one_holds_the_lock(engine: Engine, crm: Warehouse) -> None:
    if crm.adapter.temporary_schema is None:
        pytest.skip(f"{engine.title}: has no temporary tables that a session can fill before its transaction")
    staged = crm.with_temporary(crm.tables.staged_actions).table
    row = (1, *("a1" if column.name == "action_id" else None for column in crm.tables.actions.columns))
    with crm.write():
        session = crm.stage_ahead(staged, [row])
    assert session

    assert crm.commit_once(lambda connection: connection.scalar(select(staged.c.action_id)), session) == "a1"
    assert session.closed


def test_two_concurrent_loaders_give_the_same_tables_as_two_successive_loaders(
    engine: Engine, new_url: Callable[[], str]
) -> None:
    if not engine.processes:
        pytest.skip(f"{engine.title}: runs inside one process here")
    url = new_url()
    contents = make_scenario(Random("two loaders"), 60, ordered=False)
    half = len(contents.lines) // 2
    shares = [contents.input(), as_input([*contents.schemas, *contents.lines[half:], *contents.lines[:half]])]
    settings = environment(TARGET_CRM_SQLALCHEMY_URL=url, TARGET_CRM_BATCH_SIZE_ROWS="7")

    loaders = [
        subprocess.Popen(
            command("target-crm", "--config", "ENV"),
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in shares
    ]
    for loader, share in zip(loaders, shares, strict=True):
        assert loader.stdin
        loader.stdin.write(share)
        loader.stdin.close()
    logs = [loader.stderr.read().decode() for loader in loaders if loader.stderr]

    assert [loader.wait(RUN_SECONDS_MAX) for loader in loaders] == [0, 0], logs
    assert table(url, "award_balances") == contents.balances()


def test_the_numbers_in_a_report_add_up_to_the_balances(crm: Warehouse) -> None:
    noon = datetime(2026, 10, 5, 12, tzinfo=UTC)
    messages = [
        *(AWARDS, snapshot("w2", 7, at="2026-10-03T00:00:00Z"), schema("perks", {"_id": TEXT, "title": TEXT}, "_id")),
        *(record("perks", {"_id": "p1", "title": "Crème 🥐"}), ACTIONS),
        action("a1", delta=2, available=12, at="2026-10-01T12:14:59.999999Z"),
        action("a2", "REDEEM_PERK", delta="0.25", available=11, at="2026-10-01T12:15:00Z"),
        action("a3", "AWARD_POINTS_REFUNDED", delta="0.25", available="11.25", at="2026-10-04T23:59:59Z"),
    ]
    load(crm, messages)

    contents = report.gather(crm, days=5, now=noon)

    assert [(row["actions"], row["outstanding"]) for row in contents.days] == [
        *[(2, Decimal(18))] * 1,
        *[(0, Decimal(18))] * 2,
        *[(1, Decimal("18.25"))] * 1,
        *[(0, Decimal("18.25"))] * 1,
    ]
    assert contents.roll_forward == {
        "before": Decimal(17),
        "issued": Decimal(2),
        "redeemed": Decimal("0.25"),
        "refunded": Decimal("0.25"),
        "added": Decimal(0),
        "removed": Decimal("0.75"),
        "after": Decimal("18.25"),
    }
    assert contents.outstanding == {"points": Decimal("18.25"), "awards": 2, "holders": 1}
    assert [(row["title"], row["points"]) for row in contents.perks] == [("Crème 🥐", Decimal("18.25"))]
    assert [(row["weekday"], row["hour"]) for row in contents.hours if row["actions"]] == [(3, 12), (6, 23)]
    with crm.read() as connection:
        period = figures.Period(date(2026, 10, 1), date(2026, 10, 3), UTC)
        bounds = {"start": period.start, "end": period.end, "end_quarter": period.end_quarter}
        quarters = connection.execute(figures.by_quarter_hour(crm.tables), bounds).scalars().all()
    noon_quarter = int(datetime(2026, 10, 1, 12, tzinfo=UTC).timestamp()) // 900
    assert {noon_quarter, noon_quarter + 1, period.end_quarter} <= set(quarters)
    assert [(row["month"], row["points"]) for row in contents.issued] == [
        ("undated", Decimal("16.25")),
        ("2026-10", Decimal(2)),
    ]
    only = report.gather(crm, days=5, now=noon, perk="Crème 🥐")
    assert (only.days, only.issued) == (contents.days, contents.issued)
    assert {each.stream: each.rows for each in contents.status.streams} == {"actions": 3, "awards": 1, "perks": 1}
    assert [(run["exit_state"], run["read"]) for run in contents.status.runs] == [("done", 5)]
    assert not contents.status.drifted
    assert not status(crm).drifted


def test_coverage_shows_why_a_balance_changed_without_an_action(crm: Warehouse) -> None:
    def read(start: str, end: str) -> str:
        span = [f"2026-10-{start}:00:00.250Z", f"2026-10-{end}:00:00.250Z"]
        bookmark = {"replication_key_value": span[1], "covered_from": span[0], "merchant": "m", "read": [span]}
        return state({"bookmarks": {"actions": bookmark}})

    load(crm, [ACTIONS, action("a1", at="2026-10-01T12:00:00Z"), read("01T00", "02T00")])
    load(crm, [ACTIONS, action("a2", available=9, at="2026-10-02T12:00:00Z"), read("01T23", "03T00")])
    assert [(row["covered_from"], row["covered_until"]) for row in table(crm, "coverage")] == [
        (datetime(2026, 10, 1, microsecond=250_000, tzinfo=UTC), datetime(2026, 10, 3, microsecond=250_000, tzinfo=UTC))
    ]

    load(crm, [ACTIONS, action("a3", available=1, at="2026-10-05T12:00:00Z"), read("05T00", "06T00")])
    found = verify(crm, gaps=True)
    assert (found.drifted, found.failed) == (False, True)
    assert found.gaps
    assert (found.gaps.number, found.gaps.covered, found.gaps.unread) == (2, 1, 1)
    assert [hole["until"].day - hole["from"].day for hole in found.coverage.holes] == [2]


def test_erasing_a_user_changes_no_current_or_past_balance(crm: Warehouse) -> None:
    def named(name: str) -> dict[str, Any]:
        return {"context": {"user": {"_id": "u1", "fullName": name}}}

    messages = [
        *(AWARDS, snapshot("w2", 7, at="2026-10-03T00:00:00Z"), ACTIONS),
        action("a1", delta=2, available=2, at="2026-10-01T12:00:00Z", **named("Tom Jones")),
        action("a2", delta=3, available=5, at="2026-10-02T12:00:00Z", **named("Tom Jones")),
        action("a3", delta=3, available=5, award="w3", user="U1", note="Ann Smith"),
        action("r1", available=True, **named("Tom Jones")),
    ]
    load(crm, messages)

    def known(day: int) -> list[tuple[Any, ...]]:
        with crm.read() as connection:
            moment = {"moment": datetime(2026, 10, day, 12, tzinfo=UTC)}
            return [tuple(row) for row in connection.execute(balances.as_of(crm.tables), moment)]

    then = {day: known(day) for day in (1, 2, 3)}
    assert [[(row[0], row[3]) for row in rows] for rows in then.values()] == [
        [("w1", 2), ("w3", 5)],
        [("w1", 5), ("w3", 5)],
        [("w1", 5), ("w2", 7), ("w3", 5)],
    ]

    assert forget(crm, "u1").rows == {"actions": 2, "other_actions": 0, "awards": 0, "users": 0, "rejected_records": 1}

    load(crm, messages)
    payloads = [row["payload"] for name in ("actions", "rejected_records") for row in table(crm, name, "payload")]
    assert [("Tom" in str(each), "Ann" in str(each)) for each in payloads].count((False, True)) == 1
    assert not any("Tom" in str(each) for each in payloads)
    assert {day: known(day) for day in (1, 2, 3)} == then
    assert not verify(crm).drifted
