"""No log, error, STATE or output of `--about` contains a secret or personal data.

`Run.wait` searches the output of every run of the stress tests for a token and a person. A fixture searches the log of
this process.
These tests add runs that fail or only print. Records, ledger payloads and the quarantine may contain personal data.
"""

from __future__ import annotations

import json
import logging
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.helpers.target import ACTIONS, action, execute, query, record, schema, state
from tests.stress import count
from tests.stress.runs import CanaryHandler, PostgresPlace
from tests.stress.scenario import PERSON, TOKEN, make_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stress.runs import Ended, Forks, Place

UNREACHABLE = f"postgresql://loader:{TOKEN}@127.0.0.1:1/crm"


@pytest.fixture(scope="module")
def crm(postgres_url: str) -> Iterator[Place]:
    place = PostgresPlace(postgres_url)
    yield place
    place.close()


def assert_exit_code(ended: Ended, exit_code: int) -> None:
    """Fail unless the run ended as expected. `Run.wait` has already searched its output."""
    assert ended.exit_code == exit_code, ended.log
    count("runs that fail or only print, searched for secrets")


def test_the_search_finds_a_canary_in_the_output_of_a_run(forks: Forks, crm: Place) -> None:
    lines = [ACTIONS, state({"who": PERSON})]

    with pytest.raises(AssertionError, match="in the output of a run"):
        forks.run(crm.url, "\n".join(lines).encode())


def test_the_search_finds_a_canary_in_the_log_of_this_process() -> None:
    handler = CanaryHandler()

    for name in ("Tea", PERSON):
        handler.handle(logging.makeLogRecord({"msg": "%s came", "args": (name,)}))

    assert (handler.lines, handler.found) == (2, [f"{PERSON} came"])


def test_personal_data_is_kept_in_payloads_and_the_quarantine(forks: Forks, crm: Place) -> None:
    ended = forks.run(crm.url, make_scenario(Random("secrets"), 60).input())

    assert_exit_code(ended, 0)
    assert query(crm.url, f"SELECT count(*) > 9 FROM actions WHERE payload::text LIKE '%{PERSON}%'") == [(True,)]
    assert query(crm.url, f"SELECT count(*) > 0 FROM rejected_records WHERE payload LIKE '%{PERSON}%'") == [(True,)]


@pytest.mark.parametrize("form", ["", "--format=json", "--format=markdown"])
def test_about_contains_no_secret(forks: Forks, form: str) -> None:
    assert_exit_code(forks.run(UNREACHABLE, b"", "target-crm", "--about", *form.split()), 0)


@pytest.mark.parametrize("command", ["verify", "rebuild", "replay"])
def test_crm_balances_prints_no_personal_data(forks: Forks, crm: Place, command: str) -> None:
    forks.run(crm.url, make_scenario(Random("secrets"), 60).input())
    execute(crm.url, "UPDATE award_balances SET points = -1")

    assert_exit_code(forks.run(crm.url, b"", "crm-balances", command), command == "verify")
    assert_exit_code(forks.run(UNREACHABLE, b"", "crm-balances", command), 2)


def test_the_error_for_an_unreachable_server_omits_the_password(forks: Forks) -> None:
    assert_exit_code(forks.run(UNREACHABLE, f"{ACTIONS}\n{action('a1', note=PERSON)}\n".encode()), 1)


@pytest.mark.parametrize("url", [f"nosql://u:{TOKEN}@h/db", f"postgresql://u:1@h:{TOKEN}/db", TOKEN])
def test_the_error_for_a_malformed_url_omits_the_url(forks: Forks, url: str) -> None:
    assert_exit_code(forks.run(url, f"{ACTIONS}\n".encode()), 1)


@pytest.mark.parametrize("option", ["batch_size_rows", "on_invalid_record", "store_payload", "stream_maps"])
def test_the_error_for_a_malformed_setting_omits_the_value(forks: Forks, crm: Place, option: str) -> None:
    assert_exit_code(forks.run(crm.url, f"{ACTIONS}\n".encode(), **{option: TOKEN}), 1)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(action("a2", delta=PERSON), id="points"),
        pytest.param(action("a2", at=PERSON), id="time"),
        pytest.param(action("a2", award={"name": PERSON}), id="id"),
        pytest.param(action("a1", available=99, note=PERSON), id="contradiction"),
        pytest.param(PERSON, id="not-a-message"),
        pytest.param(f'{{"type": "{PERSON}"}}', id="unknown-type"),
        pytest.param(f'{{"type": "BATCH", "stream": "actions", "manifest": ["file:///{PERSON}"]}}', id="batch"),
        pytest.param(f'{{"type": "STATE", "value": "{PERSON}"}}', id="state"),
        pytest.param(record("unknown", {"name": PERSON}), id="no-schema"),
        pytest.param(schema("people", {"name": PERSON}), id="not-a-json-schema"),
        pytest.param(f'{{"type": "SCHEMA", "stream": "people", "schema": "{PERSON}"}}', id="schema-is-text"),
    ],
)
def test_the_error_for_an_invalid_line_omits_the_value(forks: Forks, crm: Place, bad: str) -> None:
    lines = f"{ACTIONS}\n{action('a1')}\n{bad}\n".encode()

    assert_exit_code(forks.run(crm.url, lines, on_invalid_record="fail"), 1)


def test_the_error_for_a_value_that_the_warehouse_rejects_omits_the_value(
    forks: Forks, crm: Place, tmp_path: Path
) -> None:
    people = schema("people", {"_id": {"type": "string"}, "name": {"type": "string"}}, "_id")
    person = record("people", {"_id": "1", "name": PERSON})
    forks.run(crm.url, f"{people}\n".encode())
    execute(crm.url, "ALTER TABLE people ADD CHECK (length(name) < 9)")

    rejected = forks.run(crm.url, f"{people}\n{person}\n".encode())

    assert_exit_code(rejected, 1)
    mapped = json.dumps({"people": {"name": "nope(name)"}})
    assert_exit_code(forks.run(crm.url, f"{people}\n{person}\n".encode(), stream_maps=mapped), 1)
