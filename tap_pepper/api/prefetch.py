"""Fetch several windows at once in threads, and return their pages strictly in order.

The threads are daemon threads, unlike the threads of `concurrent.futures`, because a run that is terminated must not
wait for requests in flight.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import chain, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from tap_pepper.api.rate_limit import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from threading import Event

T = TypeVar("T")
P = TypeVar("P")

WINDOWS_PER_WORKER: Final = 2
"""How many windows per worker may be in progress or wait to be consumed."""
JOIN_SECONDS_MAX: Final = 1.0
"""How long to wait for the workers at the end. A worker in the middle of a request ends later, on its own."""


def prefetch(
    windows: Iterator[T],
    fetch: Callable[[T, Event], Iterator[P]],
    *,
    workers: int,
    size: Callable[[P], int],
    size_max: int,
    on_cancel: Callable[[], None],
) -> Generator[tuple[T, Iterator[P]], None, None]:
    """Fetch windows concurrently, and yield each with its pages, in order.

    Memory is bounded: each window buffers at most its share of `size_max`, or a single page that is larger than this
    share. When the buffer is full, the worker waits for space. The oldest window is always being consumed, so the
    workers cannot deadlock. If there is only one worker or one window, no thread is started.

    Args:
        windows: The windows to fetch. Only the caller's thread takes windows from this iterator, one at a time, when
            there is space.
        fetch: Takes a window and an event, and yields the window's pages until the event is set. If it fails, the
            caller first gets the pages fetched so far, and then the error.
        workers: Maximum number of threads.
        size: Returns the size of a page.
        size_max: Maximum total size of all buffered pages.
        on_cancel: Called after the event was set. It must wake workers that wait for something other than space in a
            buffer, such as the rate limiter.

    Yields:
        Each window and its pages. Closing the generator ends all threads.
    """
    cancel = threading.Event()
    first = list(islice(windows, 1 if workers == 1 else 2))
    if len(first) < 2:
        for window in chain(first, windows):
            yield window, fetch(window, cancel)
        return
    windows = chain(first, windows)
    share = size_max // (workers * WINDOWS_PER_WORKER)
    queue: SimpleQueue[_WindowBuffer[T, P] | None] = SimpleQueue()
    started: deque[_WindowBuffer[T, P]] = deque()
    threads: list[threading.Thread] = []
    try:
        while True:
            for window in islice(windows, workers * WINDOWS_PER_WORKER - len(started)):
                buffer = _WindowBuffer(window, cancel, size, share)
                started.append(buffer)
                queue.put(buffer)
                if len(threads) < workers:
                    threads.append(threading.Thread(target=_fetch_windows, args=(queue, fetch, cancel), daemon=True))
                    threads[-1].start()
            if not started:
                return
            yield started[0].window, started[0].pages()
            started.popleft()
    finally:
        cancel.set()
        on_cancel()
        for buffer in started:
            buffer.notify()
        for _ in threads:
            queue.put(None)
        give_up_seconds = time.monotonic() + JOIN_SECONDS_MAX
        for thread in threads:
            thread.join(max(0.0, give_up_seconds - time.monotonic()))


class _WindowBuffer(Generic[T, P]):
    """Holds the pages of a window that were fetched but not consumed yet."""

    def __init__(self, window: T, cancel: Event, size: Callable[[P], int], size_max: int) -> None:
        self.window = window
        self._cancel = cancel
        self._size_of = size
        self._size_max = size_max
        self._changed = threading.Condition()
        self._pages: deque[P] = deque()
        self._size = 0
        self._complete = False
        self._error: BaseException | None = None

    def put(self, page: P) -> None:
        size = self._size_of(page)
        with self._changed:
            while self._pages and self._size + size > self._size_max and not self._cancel.is_set():
                self._changed.wait()
            if self._cancel.is_set():
                raise Cancelled
            self._pages.append(page)
            self._size += size
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._complete, self._error = True, error
            self._changed.notify_all()

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def pages(self) -> Iterator[P]:
        while True:
            with self._changed:
                while not self._pages and not self._complete:
                    self._changed.wait()
                if not self._pages:
                    break
                page = self._pages.popleft()
                self._size -= self._size_of(page)
                self._changed.notify_all()
            yield page
        if self._error is not None:
            raise self._error


def _fetch_windows(
    queue: SimpleQueue[_WindowBuffer[T, P] | None], fetch: Callable[[T, Event], Iterator[P]], cancel: Event
) -> None:
    while not cancel.is_set():
        buffer = queue.get()
        if buffer is None:
            return
        try:
            for page in fetch(buffer.window, cancel):
                buffer.put(page)
            buffer.finish()
        except Cancelled:
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that consumes the pages
            buffer.finish(error)
