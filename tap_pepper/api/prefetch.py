"""Fetching ahead: several windows side by side in threads, their pages handed out strictly in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import chain, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from tap_pepper.api.rate_limit import Halted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from threading import Event

T = TypeVar("T")
P = TypeVar("P")

WINDOWS_AHEAD_PER_WORKER: Final = 2
"""Windows that are begun or fetched and not handed out yet, for each worker."""
JOIN_SECONDS_MAX: Final = 1.0
"""How long the end waits for workers that are in the middle of a request. After that they are left to end alone."""


def side_by_side(
    windows: Iterator[T],
    fetch: Callable[[T, Event], Iterator[P]],
    *,
    workers: int,
    size: Callable[[P], int],
    size_max: int,
    wake: Callable[[], None],
) -> Generator[tuple[T, Iterator[P]], None, None]:
    """Fetch windows side by side, and hand each out with its pages, in order.

    What waits to be handed out has a bound: each window holds its share of `size_max`, or one page if that is larger,
    and its worker waits until it has room. The first window is always being read, so the others never wait in vain.
    With one worker, or one window, there is no thread.

    Args:
        windows: What to fetch; it is asked in the caller's thread alone, for as many as there is room for.
        fetch: Gives the pages of a window until the event is set. An error comes after the pages before it.
        workers: Threads.
        size: The size of a page.
        size_max: The size of all pages that wait.
        wake: Called after the event was set, to reach a worker that waits for something else.

    Yields:
        Each window and its pages. Closing the generator ends all threads.
    """
    halt = threading.Event()
    first = list(islice(windows, 1 if workers == 1 else 2))
    if len(first) < 2:
        for window in chain(first, windows):
            yield window, fetch(window, halt)
        return
    windows = chain(first, windows)
    share = size_max // (workers * WINDOWS_AHEAD_PER_WORKER)
    todo: SimpleQueue[_Lane[T, P] | None] = SimpleQueue()
    begun: deque[_Lane[T, P]] = deque()
    threads: list[threading.Thread] = []
    try:
        while True:
            for window in islice(windows, workers * WINDOWS_AHEAD_PER_WORKER - len(begun)):
                lane = _Lane(window, halt, size, share)
                begun.append(lane)
                todo.put(lane)
                if len(threads) < workers:
                    threads.append(threading.Thread(target=_work, args=(todo, fetch, halt), daemon=True))
                    threads[-1].start()
            if not begun:
                return
            yield begun[0].window, begun[0].pages()
            begun.popleft()
    finally:
        halt.set()
        wake()
        for lane in begun:
            lane.wake()
        for _ in threads:
            todo.put(None)
        give_up_seconds = time.monotonic() + JOIN_SECONDS_MAX
        for thread in threads:
            thread.join(max(0.0, give_up_seconds - time.monotonic()))


class _Lane(Generic[T, P]):
    """A window with those of its pages that were fetched and not handed out."""

    def __init__(self, window: T, halt: Event, size: Callable[[P], int], size_max: int) -> None:
        self.window = window
        self._halt = halt
        self._size_of = size
        self._size_max = size_max
        self._changed = threading.Condition()
        self._pages: deque[P] = deque()
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None

    def put(self, page: P) -> None:
        size = self._size_of(page)
        with self._changed:
            while self._pages and self._size + size > self._size_max and not self._halt.is_set():
                self._changed.wait()
            if self._halt.is_set():
                raise Halted
            self._pages.append(page)
            self._size += size
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def pages(self) -> Iterator[P]:
        while True:
            with self._changed:
                while not self._pages and not self._ended:
                    self._changed.wait()
                if not self._pages:
                    break
                page = self._pages.popleft()
                self._size -= self._size_of(page)
                self._changed.notify_all()
            yield page
        if self._error is not None:
            raise self._error


def _work(todo: SimpleQueue[_Lane[T, P] | None], fetch: Callable[[T, Event], Iterator[P]], halt: Event) -> None:
    while not halt.is_set():
        lane = todo.get()
        if lane is None:
            return
        try:
            for page in fetch(lane.window, halt):
                lane.put(page)
            lane.end()
        except Halted:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised again where the pages are read
            lane.end(error)
