"""Server faults (a closed connection, a crash, a lost COMMIT) and concurrency (two loaders and a reader)."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import case as sql_case
from sqlalchemy import func
from sqlalchemy import select as sql_select

from tests.helpers.postgres import PostgresServer
from tests.stress import count, run_cases, size
from tests.stress.recovery import SETTINGS, check, count_calls, finish, rehearse
from tests.stress.runs import Place, PostgresPlace
from tests.stress.scenario import as_input

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from tests.stress.runs import Forks, Run

WAIT_SECONDS = 30


@pytest.fixture
def postgres_place(postgres_url: str) -> Iterator[Place]:
    place = PostgresPlace(postgres_url)
    yield place
    place.close()


def test_a_run_reconnects_when_the_server_closes_the_connection_in_a_transaction(
    forks: Forks, postgres_place: Place, shard: int
) -> None:
    place, rehearsal = postgres_place, rehearse(forks, postgres_place, keyless=True)

    def case(random: Random, _: int) -> None:
        place.clear()
        run = forks.start(place.url, rehearsal.scenario.input(), fault=rehearsal.pause_at_rows(random), **SETTINGS)
        with psycopg.connect(place.url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [run.next_report()["backend"]])
        run.resume()
        ended = run.wait()
        assert ended.exit_code == 0, ended.log
        check(place, rehearsal.scenario, ended)
        assert place.contents() == rehearsal.expected

    run_cases("backend terminated, postgresql", range(size(3, 100)), case, shard)


def test_nothing_is_lost_when_the_server_crashes_and_restarts(forks: Forks) -> None:
    with PostgresServer() as server:
        place = PostgresPlace(server.url)
        rehearsal = rehearse(forks, place)

        def case(random: Random, _: int) -> None:
            place.clear()
            run = forks.start(place.url, rehearsal.scenario.input(), fault=rehearsal.pause_at_rows(random), **SETTINGS)
            assert "at" in run.next_report()
            server.crash()
            restarts_at_once = random.choice([True, True, False])
            if restarts_at_once:
                server.start()
            run.resume()
            ended = run.wait()
            if not restarts_at_once:
                assert ended.exit_code != 0
                server.start()
            # The crash has also closed the connections of this process.
            place.close()
            finish(forks, place, rehearsal, check(place, rehearsal.scenario, ended))

        run_cases("server crashed, postgresql", range(size(1, 10)), case)
        place.close()


def test_a_batch_whose_commit_got_no_reply_is_loaded_once(forks: Forks, postgres_place: Place, shard: int) -> None:
    place, rehearsal = postgres_place, rehearse(forks, postgres_place, keyless=True)
    with lossy_proxy(place.url) as proxy:
        place.clear()
        count_calls(forks, proxy, as_input(rehearsal.scenario.schemas))
        before_rows = proxy.commits
        place.clear()
        count_calls(forks, proxy, rehearsal.scenario.input())
        commits = proxy.commits - before_rows

        def case(random: Random, _: int) -> None:
            place.clear()
            proxy.commits = 0
            proxy.lose_commit = random.randint(before_rows + 1, commits)
            proxy.lose_reply = random.choice([True, True, False])
            ended = forks.run(proxy.url, rehearsal.scenario.input(), **SETTINGS)
            assert proxy.commits >= proxy.lose_commit
            assert ended.exit_code == 0, ended.log
            check(place, rehearsal.scenario, ended)
            assert place.contents() == rehearsal.expected

        run_cases("COMMIT lost, postgresql", range(size(3, 100)), case, shard)


def test_two_loaders_load_the_same_as_one_and_a_reader_always_sees_balances_that_match_the_ledger(
    forks: Forks, place: Place, shard: int
) -> None:
    rehearsal = rehearse(forks, place, ordered=False)
    scenario = rehearsal.scenario

    def case(random: Random, _: int) -> None:
        place.clear()
        # The second loader begins at a STATE of the first loader, so that the coverage has no hole.
        cut = scenario.last_state(random.randrange(len(scenario.lines)))
        first = as_input(scenario.lines[: cut + 1 + random.randrange(len(scenario.lines))])
        runs = [forks.start(place.url, first, **SETTINGS), forks.start(place.url, scenario.input(cut), **SETTINGS)]
        readings = read_while(place, runs)
        for run in runs:
            ended = run.wait()
            assert ended.exit_code == 0, ended.log
        assert place.contents() == rehearsal.expected
        place.assert_consistent()
        count(f"readings during two loads, {place.engine}", cases=readings)

    rounds = {"sqlite": size(2, 20), "postgresql": size(2, 50)}
    run_cases(f"two loaders, {place.engine}", range(rounds[place.engine]), case, shard)


def read_while(place: Place, runs: list[Run]) -> int:
    """Compare balances with the ledger until all runs have ended. Return the number of comparisons."""
    running = [run.control for run in runs]
    readings = 0
    while running:
        # A control socket becomes readable when its run ends.
        ended, _, _ = select.select(running, [], [], 0)
        running = [control for control in running if control not in ended]
        if {"actions", "award_balances", "awards"} <= place.tables():
            assert_balances_match_the_ledger(place)
            readings += 1
    return readings


def assert_balances_match_the_ledger(place: Place) -> None:
    balances, actions = place.warehouse.tables.award_balances.c, place.warehouse.tables.actions.c

    def ledger_sum(effect: str, column: Any) -> Any:
        return func.coalesce(func.sum(sql_case((actions.effect == effect, column))), 0)

    def total(column: Any) -> Any:
        return func.coalesce(func.sum(column), 0)

    of_balances = sql_select(
        total(balances.earned_total),
        total(balances.redeemed_total),
        total(balances.refunded_total),
        total(balances.action_count),
    )
    of_ledger = sql_select(
        ledger_sum("earned", actions.points_added),
        ledger_sum("redeemed", actions.points_redeemed),
        ledger_sum("refunded", actions.points_refunded),
        func.count(actions.effect),
    )
    with place.warehouse.read() as connection:
        one, other = connection.execute(of_balances).one(), connection.execute(of_ledger).one()
    assert [round(float(value), 4) for value in one] == [round(float(value), 4) for value in other]


class LossyProxy(Place):
    """A proxy to the server that drops one COMMIT (the request or the reply) and its connection."""

    def __init__(self, url: str, port: int, server_port: int) -> None:
        super().__init__(url.replace(f":{server_port}/", f":{port}/"))
        self._server_port = server_port
        self.commits = 0
        self.lose_commit = 0
        self.lose_reply = True

    def forward(self, client: socket.socket) -> None:
        """Forward bytes between a client and the server until one of them disconnects."""
        server = socket.create_connection(("127.0.0.1", self._server_port))
        with client, server:
            while True:
                readable, _, _ = select.select([client, server], [], [], WAIT_SECONDS)
                source = readable[0] if readable else client
                data = source.recv(1 << 16) if readable else b""
                if not data:
                    return
                is_commit = source is client and b"COMMIT\0" in data
                self.commits += is_commit
                if is_commit and self.commits == self.lose_commit:
                    if self.lose_reply:
                        server.sendall(data)
                        server.recv(1 << 16)
                    return
                (server if source is client else client).sendall(data)


@contextmanager
def lossy_proxy(url: str) -> Iterator[LossyProxy]:
    """Run a proxy on a loopback port."""
    server_port = int(url.rpartition(":")[2].partition("/")[0])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = LossyProxy(url, listener.getsockname()[1], server_port)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=proxy.forward, args=[client], daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_SECONDS)
