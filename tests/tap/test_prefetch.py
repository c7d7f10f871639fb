"""Windows are fetched concurrently and returned in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from threading import Event
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tap_pepper.api.prefetch import WINDOWS_PER_WORKER, prefetch

if TYPE_CHECKING:
    from collections.abc import Generator

WAIT_SECONDS_MAX = 30.0

Fetch = Callable[[int, Event], Iterator[str]]


class RecordedThreads:
    """The threads in which `fetch` ran."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._threads: set[threading.Thread] = set()

    def fetch(self, window: int, cancel: Event) -> Iterator[str]:
        self._threads.add(threading.current_thread())
        return self._fetch(window, cancel)

    def all_ended(self) -> bool:
        workers = self._threads - {threading.current_thread()}
        for thread in workers:
            thread.join(WAIT_SECONDS_MAX)
        return not any(thread.is_alive() for thread in workers)


def prefetch_windows(
    fetch: Fetch, windows: Iterator[int], *, workers: int = 4, size_max: int = 100
) -> Generator[tuple[int, Iterator[str]], None, None]:
    return prefetch(windows, fetch, workers=workers, size=len, size_max=size_max, on_cancel=lambda: None)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 6), st.integers(1, 40))
def test_pages_come_in_order_whatever_the_buffer_size(pages: list[int], workers: int, size_max: int) -> None:
    def fetch(window: int, cancel: Event) -> Iterator[str]:
        return (f"{window}.{number}" for number in range(pages[window]))

    threads = RecordedThreads(fetch)
    prefetched = prefetch_windows(threads.fetch, iter(range(len(pages))), workers=workers, size_max=size_max)
    assert [(window, list(its_pages)) for window, its_pages in prefetched] == [
        (window, [f"{window}.{number}" for number in range(count)]) for window, count in enumerate(pages)
    ]
    assert threads.all_ended()


def test_windows_are_fetched_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=WAIT_SECONDS_MAX)

    def fetch(window: int, cancel: Event) -> Iterator[str]:
        together.wait()
        yield "page"

    assert [list(pages) for _, pages in prefetch_windows(fetch, iter(range(8)))] == [["page"]] * 8


@pytest.mark.parametrize(("workers", "windows"), [(1, 5), (4, 1)])
def test_one_worker_or_one_window_starts_no_thread(workers: int, windows: int) -> None:
    used = set()

    def fetch(window: int, cancel: Event) -> Iterator[str]:
        used.add(threading.current_thread())
        yield "page"

    for _, pages in prefetch_windows(fetch, iter(range(windows)), workers=workers):
        list(pages)
    assert used == {threading.current_thread()}


def test_the_number_of_buffered_pages_is_bounded() -> None:
    workers, share, made = 2, 3, [0] * 50
    fetched = threading.Semaphore(0)

    def fetch(window: int, cancel: Event) -> Iterator[str]:
        for _ in range(20):
            made[window] += 1
            fetched.release()
            yield "p"

    threads = RecordedThreads(fetch)
    size_max = share * workers * WINDOWS_PER_WORKER
    prefetched = prefetch_windows(threads.fetch, iter(range(50)), workers=workers, size_max=size_max)
    next(prefetched)
    # Each worker has filled its buffer, and waits with one more page.
    for _ in range(workers * (share + 1)):
        assert fetched.acquire(timeout=WAIT_SECONDS_MAX)
    assert not fetched.acquire(timeout=0.05)
    assert sum(made) == workers * (share + 1)
    prefetched.close()
    assert threads.all_ended()


def test_windows_are_planned_only_when_there_is_room_for_them() -> None:
    planned = iter(range(100))
    prefetched = prefetch_windows(lambda *_: iter(()), planned, workers=3)
    next(prefetched)
    assert next(planned) == 3 * WINDOWS_PER_WORKER
    prefetched.close()


def test_an_error_comes_after_the_pages_before_it_and_ends_all_threads() -> None:
    def fetch(window: int, cancel: Event) -> Iterator[str]:
        yield f"{window}"
        if window == 2:
            raise LookupError("broken")
        while window > 2 and not cancel.wait(0.001):
            pass

    threads = RecordedThreads(fetch)
    got: list[str] = []
    with pytest.raises(LookupError, match="broken"):
        for _, pages in prefetch_windows(threads.fetch, iter(range(9))):
            got += list(pages) if not got or got[-1] != "1" else [next(pages), *pages]
    assert got == ["0", "1"]
    assert threads.all_ended()


def test_closing_the_generator_ends_all_threads() -> None:
    threads = RecordedThreads(lambda *_: iter("x" * 1000))
    prefetched = prefetch_windows(threads.fetch, iter(range(1000)), size_max=8)
    _, pages = next(prefetched)
    assert next(pages) == "x"
    prefetched.close()
    assert threads.all_ended()
