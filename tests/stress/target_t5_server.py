"""T5: the server ends a connection, crashes, or commits and can't say so; two loaders and a reader at once."""

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
from tests.stress.target_recovery import SETTINGS, check, count_calls, finish, rehearse
from tests.stress.target_runs import Place, PostgresPlace
from tests.stress.target_story import as_input

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from tests.stress.target_runs import Forks, Run

WAIT_SECONDS = 30


@pytest.fixture
def postgres_place(postgres_url: str) -> Iterator[Place]:
    place = PostgresPlace(postgres_url)
    yield place
    place.close()


def test_a_connection_that_the_server_ends_in_a_transaction_is_made_again(
    forks: Forks, postgres_place: Place, shard: int
) -> None:
    place, rehearsal = postgres_place, rehearse(forks, postgres_place, keyless=True)

    def case(random: Random, _: int) -> None:
        place.clear()
        run = forks.start(place.url, rehearsal.told.input(), fault=rehearsal.pause_at_rows(random), **SETTINGS)
        with psycopg.connect(place.url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [run.said()["backend"]])
        run.go_on()
        ended = run.ended()
        assert ended.exit_code == 0, ended.log
        check(place, rehearsal.told, ended)
        assert place.contents() == rehearsal.expected

    run_cases("T5 backend terminated, postgresql", range(size(3, 100)), case, shard)


def test_a_server_that_crashes_and_comes_back_loses_nothing(forks: Forks) -> None:
    with PostgresServer() as server:
        place = PostgresPlace(server.url)
        rehearsal = rehearse(forks, place)

        def case(random: Random, _: int) -> None:
            place.clear()
            run = forks.start(place.url, rehearsal.told.input(), fault=rehearsal.pause_at_rows(random), **SETTINGS)
            assert "at" in run.said()
            server.crash()
            comes_back_at_once = random.choice([True, True, False])
            if comes_back_at_once:
                server.start()
            run.go_on()
            ended = run.ended()
            if not comes_back_at_once:
                assert ended.exit_code != 0
                server.start()
            # The checks' own connections are lost as well.
            place.close()
            finish(forks, place, rehearsal, check(place, rehearsal.told, ended))

        run_cases("T5 server crashed, postgresql", range(size(1, 10)), case)
        place.close()


def test_a_batch_whose_commit_got_no_reply_is_loaded_once(forks: Forks, postgres_place: Place, shard: int) -> None:
    place, rehearsal = postgres_place, rehearse(forks, postgres_place, keyless=True)
    with lossy_proxy(place.url) as proxy:
        place.clear()
        count_calls(forks, proxy, as_input(rehearsal.told.schemas))
        before_rows = proxy.commits
        place.clear()
        count_calls(forks, proxy, rehearsal.told.input())
        commits = proxy.commits - before_rows

        def case(random: Random, _: int) -> None:
            place.clear()
            proxy.commits = 0
            proxy.lose_commit = random.randint(before_rows + 1, commits)
            proxy.lose_reply = random.choice([True, True, False])
            ended = forks.run(proxy.url, rehearsal.told.input(), **SETTINGS)
            assert proxy.commits >= proxy.lose_commit
            assert ended.exit_code == 0, ended.log
            check(place, rehearsal.told, ended)
            assert place.contents() == rehearsal.expected

        run_cases("T5 COMMIT lost, postgresql", range(size(3, 100)), case, shard)


def test_two_loaders_at_once_equal_one_and_a_reader_always_sees_balances_that_fit_the_ledger(
    forks: Forks, place: Place, shard: int
) -> None:
    rehearsal = rehearse(forks, place, ordered=False)
    told = rehearsal.told

    def case(random: Random, _: int) -> None:
        place.clear()
        cut, overlap = random.randrange(len(told.lines)), random.randrange(len(told.lines))
        first = as_input(told.lines[: cut + overlap])
        runs = [forks.start(place.url, first, **SETTINGS), forks.start(place.url, told.input(cut), **SETTINGS)]
        readings = read_while(place, runs)
        for run in runs:
            ended = run.ended()
            assert ended.exit_code == 0, ended.log
        assert place.contents() == rehearsal.expected
        place.is_consistent()
        count(f"T5 readings beside two loaders, {place.engine}", cases=readings)

    rounds = {"sqlite": size(2, 20), "postgresql": size(2, 50)}
    run_cases(f"T5 two loaders, {place.engine}", range(rounds[place.engine]), case, shard)


def read_while(place: Place, runs: list[Run]) -> int:
    """Hold balances against ledger until all runs have ended; returns how often."""
    running = [run.control for run in runs]
    readings = 0
    while running:
        # A control socket is readable when its run is over.
        over, _, _ = select.select(running, [], [], 0)
        running = [control for control in running if control not in over]
        if {"actions", "award_balances", "awards"} <= place.names():
            assert_balances_fit_the_ledger(place)
            readings += 1
    return readings


def assert_balances_fit_the_ledger(place: Place) -> None:
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
    """A way to the server that loses one COMMIT: the request, or the reply, and the connection with it."""

    def __init__(self, url: str, port: int, server_port: int) -> None:
        super().__init__(url.replace(f":{server_port}/", f":{port}/"))
        self._server_port = server_port
        self.commits = 0
        self.lose_commit = 0
        self.lose_reply = True

    def carry(self, client: socket.socket) -> None:
        """Carry bytes between a client and the server until one of them has enough."""
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
                threading.Thread(target=proxy.carry, args=[client], daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_SECONDS)
