"""T7: a token and a person's name reach no log, error, STATE or `--about`.

Every run of the campaign is searched for them when it ends (`Run.ended`), and so is all that is logged where runs share
a process. Here are runs of other kinds: those that fail, and those that only talk. Records, ledger payloads and the
quarantine are where a person may be.
"""

from __future__ import annotations

import json
import logging
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.helpers.target import ACTIONS, action, execute, query, record, schema, state
from tests.stress import count
from tests.stress.target_runs import Eavesdropper, PostgresPlace
from tests.stress.target_story import PERSON, TOKEN, story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stress.target_runs import Ended, Forks, Place

NOWHERE = f"postgresql://loader:{TOKEN}@127.0.0.1:1/crm"


@pytest.fixture(scope="module")
def crm(postgres_url: str) -> Iterator[Place]:
    place = PostgresPlace(postgres_url)
    yield place
    place.close()


def searched(ended: Ended, exit_code: int) -> None:
    """`Run.ended` has searched it; how it ended shows that it came to the point."""
    assert ended.exit_code == exit_code, ended.log
    count("T7 runs that only talk or fail")


def test_the_search_finds_a_canary_that_a_run_lets_out(forks: Forks, crm: Place) -> None:
    told = [ACTIONS, state({"who": PERSON})]

    with pytest.raises(AssertionError, match="in the output of a run"):
        forks.run(crm.url, "\n".join(told).encode())


def test_the_search_finds_a_canary_that_this_process_lets_out() -> None:
    eavesdropper = Eavesdropper()

    for name in ("Tea", PERSON):
        eavesdropper.handle(logging.makeLogRecord({"msg": "%s came", "args": (name,)}))

    assert (eavesdropper.lines, eavesdropper.found) == (2, [f"{PERSON} came"])


def test_persons_are_in_the_warehouse_where_they_belong(forks: Forks, crm: Place) -> None:
    ended = forks.run(crm.url, story(Random("T7"), 60).input())

    searched(ended, 0)
    assert query(crm.url, f"SELECT count(*) > 9 FROM actions WHERE payload::text LIKE '%{PERSON}%'") == [(True,)]
    assert query(crm.url, f"SELECT count(*) > 0 FROM rejected_records WHERE payload LIKE '%{PERSON}%'") == [(True,)]


@pytest.mark.parametrize("form", ["", "--format=json", "--format=markdown"])
def test_about_tells_no_secret(forks: Forks, form: str) -> None:
    searched(forks.run(NOWHERE, b"", "target-crm", "--about", *form.split()), 0)


@pytest.mark.parametrize("command", ["verify", "rebuild", "replay"])
def test_what_is_said_of_balances_names_no_person(forks: Forks, crm: Place, command: str) -> None:
    forks.run(crm.url, story(Random("T7"), 60).input())
    execute(crm.url, "UPDATE award_balances SET points = -1")

    searched(forks.run(crm.url, b"", "crm-balances", command), command == "verify")
    searched(forks.run(NOWHERE, b"", "crm-balances", command), 2)


def test_a_server_out_of_reach_is_named_without_its_password(forks: Forks) -> None:
    searched(forks.run(NOWHERE, f"{ACTIONS}\n{action('a1', note=PERSON)}\n".encode()), 1)


@pytest.mark.parametrize("url", [f"nosql://u:{TOKEN}@h/db", f"postgresql://u:1@h:{TOKEN}/db", TOKEN])
def test_a_malformed_url_is_not_repeated(forks: Forks, url: str) -> None:
    searched(forks.run(url, f"{ACTIONS}\n".encode()), 1)


@pytest.mark.parametrize("option", ["batch_size_rows", "on_invalid_record", "store_payload", "stream_maps"])
def test_a_malformed_setting_is_not_repeated(forks: Forks, crm: Place, option: str) -> None:
    searched(forks.run(crm.url, f"{ACTIONS}\n".encode(), **{option: TOKEN}), 1)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(action("a2", delta=PERSON), id="points"),
        pytest.param(action("a2", at=PERSON), id="time"),
        pytest.param(action("a2", award={"name": PERSON}), id="id"),
        pytest.param(action("a1", available=99, note=PERSON), id="contradiction"),
        pytest.param(PERSON, id="no-message"),
        pytest.param(f'{{"type": "{PERSON}"}}', id="unknown-type"),
        pytest.param(f'{{"type": "BATCH", "stream": "actions", "manifest": ["file:///{PERSON}"]}}', id="batch"),
        pytest.param(f'{{"type": "STATE", "value": "{PERSON}"}}', id="state"),
        pytest.param(record("unknown", {"name": PERSON}), id="no-schema"),
        pytest.param(schema("people", {"name": PERSON}), id="no-json-schema"),
        pytest.param(f'{{"type": "SCHEMA", "stream": "people", "schema": "{PERSON}"}}', id="schema-is-text"),
    ],
)
def test_what_stops_a_run_is_told_without_its_value(forks: Forks, crm: Place, bad: str) -> None:
    lines = f"{ACTIONS}\n{action('a1')}\n{bad}\n".encode()

    searched(forks.run(crm.url, lines, on_invalid_record="fail"), 1)


def test_a_value_that_the_warehouse_refuses_is_not_repeated(forks: Forks, crm: Place, tmp_path: Path) -> None:
    people = schema("people", {"_id": {"type": "string"}, "name": {"type": "string"}}, "_id")
    person = record("people", {"_id": "1", "name": PERSON})
    forks.run(crm.url, f"{people}\n".encode())
    execute(crm.url, "ALTER TABLE people ADD CHECK (length(name) < 9)")

    refused = forks.run(crm.url, f"{people}\n{person}\n".encode())

    searched(refused, 1)
    mapped = json.dumps({"people": {"name": "nope(name)"}})
    searched(forks.run(crm.url, f"{people}\n{person}\n".encode(), stream_maps=mapped), 1)
