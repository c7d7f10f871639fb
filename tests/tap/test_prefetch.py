"""Windows fetched side by side, handed out in order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tap_pepper.api.prefetch import WINDOWS_AHEAD_PER_WORKER, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from threading import Event

WAIT_SECONDS_MAX = 5.0


def fetched(
    fetch: Callable[[int, Event], Iterator[str]], windows: Iterator[int], *, workers: int = 4, size_max: int = 100
) -> Generator[tuple[int, Iterator[str]], None, None]:
    return side_by_side(windows, fetch, workers=workers, size=len, size_max=size_max, wake=lambda: None)


def alive() -> int:
    return sum(thread.name.endswith("(_work)") for thread in threading.enumerate())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 6), st.integers(1, 40))
def test_pages_come_in_the_order_of_their_windows_whatever_the_room(
    pages: list[int], workers: int, size_max: int
) -> None:
    def fetch(window: int, halt: Event) -> Iterator[str]:
        return (f"{window}.{number}" for number in range(pages[window]))

    got = [(window, list(its)) for window, its in fetched(fetch, iter(range(len(pages))), workers=workers)]
    assert got == [(window, [f"{window}.{number}" for number in range(count)]) for window, count in enumerate(pages)]
    assert alive() == 0


def test_windows_are_fetched_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=WAIT_SECONDS_MAX)

    def fetch(window: int, halt: Event) -> Iterator[str]:
        together.wait()
        yield "page"

    assert [list(pages) for _, pages in fetched(fetch, iter(range(8)))] == [["page"]] * 8


@pytest.mark.parametrize(("workers", "windows"), [(1, 5), (4, 1)])
def test_one_worker_or_one_window_needs_no_thread(workers: int, windows: int) -> None:
    names = set()

    def fetch(window: int, halt: Event) -> Iterator[str]:
        names.add(threading.current_thread())
        yield "page"

    for _, pages in fetched(fetch, iter(range(windows)), workers=workers):
        list(pages)
    assert names == {threading.current_thread()}


def test_what_waits_to_be_handed_out_is_bounded() -> None:
    workers, share, made = 2, 3, [0] * 50
    full = threading.Semaphore(0)

    def fetch(window: int, halt: Event) -> Iterator[str]:
        for _ in range(20):
            made[window] += 1
            full.release()
            yield "p"

    lanes = fetched(fetch, iter(range(50)), workers=workers, size_max=share * workers * WINDOWS_AHEAD_PER_WORKER)
    next(lanes)
    # Each worker holds its share, and has one more page in its hand.
    for _ in range(workers * (share + 1)):
        assert full.acquire(timeout=WAIT_SECONDS_MAX)
    assert not full.acquire(timeout=0.05)
    assert sum(made) == workers * (share + 1)
    lanes.close()
    assert alive() == 0


def test_no_more_windows_are_planned_than_there_is_room_for() -> None:
    planned = iter(range(100))
    lanes = fetched(lambda *_: iter(()), planned, workers=3)
    next(lanes)
    assert next(planned) == 3 * WINDOWS_AHEAD_PER_WORKER
    lanes.close()


def test_an_error_comes_in_its_turn_after_the_pages_before_it_and_ends_all_threads() -> None:
    def fetch(window: int, halt: Event) -> Iterator[str]:
        yield f"{window}"
        if window == 2:
            raise LookupError("broken")
        while window > 2 and not halt.wait(0.001):
            pass

    got = []
    with pytest.raises(LookupError, match="broken"):
        for _, pages in fetched(fetch, iter(range(9))):
            got += list(pages) if not got or got[-1] != "1" else [next(pages), *pages]
    assert got == ["0", "1"]
    assert alive() == 0


def test_whoever_stops_reading_ends_all_threads() -> None:
    lanes = fetched(lambda *_: iter("x" * 1000), iter(range(1000)), size_max=8)
    _, pages = next(lanes)
    assert next(pages) == "x"
    lanes.close()
    assert alive() == 0
