"""Three ways to read a stream: read all rows, read the rows that changed since the bookmark, or read in windows."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL

from pepper_runtime.progress import display
from pepper_runtime.wording import counted, duration
from tap_pepper.api.prefetch import prefetch
from tap_pepper.api.rate_limit import always
from tap_pepper.base_stream import PepperStream, not_emitted
from tap_pepper.errors import TimeLimitReached
from tap_pepper.raw_json import digest, from_json, to_json
from tap_pepper.state.audit import Audit
from tap_pepper.state.coverage import Coverage
from tap_pepper.state.dedupe import KeySample, RecentRows
from tap_pepper.state.order import TimeOrder
from tap_pepper.windows import (
    EARLIEST,
    HOUR_SECONDS,
    MILLISECOND,
    WINDOW_SECONDS_FIRST,
    Window,
    hour_window,
    is_at_or_after,
    next_window_seconds,
    resume_after,
    seconds_between,
    split_backwards,
    split_into_windows,
    subtract_seconds,
    to_bound,
    to_instant,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from threading import Event

    from tap_pepper.api.rate_limit import CanWait
    from tap_pepper.api.response import Page
    from tap_pepper.raw_json import Row

READ_ALL_AGAIN = to_bound(EARLIEST)
"""If a bookmark of changes has this time in `read_again`, the next run reads all rows."""
TEST_WINDOW_SECONDS = 100 * 366 * 24 * HOUR_SECONDS
"""The length of a window in a `--test` run. It is so long that one window is enough."""
PREFETCHED_ROWS_MAX = 10_000
"""At most this many fetched rows wait in memory to be emitted, except that each window may always hold one page."""
DAY_SECONDS = 24 * HOUR_SECONDS
MINUTE_CHARS = len("2026-10-01T11:55")


class FullTableStream(PepperStream):
    """A stream that every run reads completely, so that the tap also finds deleted rows."""

    bookmark_keys: ClassVar[tuple[str, ...]] = ("version",)

    def query(self) -> dict[str, str]:
        """Return the query parameters of every request."""
        return {}

    def rows(self) -> Generator[list[Row], None, None]:
        """Yield all rows, if the time limit allows this stream to start."""
        if self.has_time_to_start():
            yield from self.read_all(self.select_fields)

    def read_all(self, prepare: Callable[[Row], Row | None]) -> Iterator[list[Row]]:
        """Yield all rows as one version of the table. A row counts as deleted once two consecutive reads lack it.

        From the second read on, an ACTIVATE_VERSION message follows the last row. Targets then delete the rows of older
        versions, or mark them as deleted. Some targets show only the rows of the version that the message names. The
        message names the version of this read if all rows of this read and of the previous read have that version.
        There are two such cases:

        - The previous read had the same version. The tap keeps a version until a read lacks rows of the read before it.
        - This read has all rows of the previous read, and no run may have emitted rows between the two reads.

        Otherwise the message names the version of the previous read, so that targets keep the rows of both reads. A row
        may only seem to be missing, because pages can shift while the tap reads them. After a read that lacks more than
        `max_deleted_fraction` of the known rows, the tap sends no message.

        The number of a new version is Pepper's time in milliseconds since 1970.
        """
        state = self.stream_state
        sample = KeySample(state.get("known"))
        pages = self.pages(self.query())
        first = next(pages)
        # `lacked_rows` is None in two cases: since the last complete read, a run has read only changes, or a run may
        # have been killed after it emitted rows.
        lacked_rows = None if self.is_test else state.pop("lacked_rows", None)
        if lacked_rows is not None:
            self.write_state()
        self._stream_version = state.get("version")
        if lacked_rows is not False or not isinstance(self._stream_version, int):
            date = first.date or self.run.client.clock.now()
            self._stream_version = _new_version(date, self._stream_version)
        # Sample the keys of all rows that Pepper returns, including the rows that are not emitted.
        yield from self.emit(_add_keys(chain([first], pages), sample), prepare, "all rows")
        if self.is_test:
            return
        state["version"] = self._stream_version
        if sample.missing_fraction > self.run.settings.max_deleted_fraction:
            if state.get("known"):
                self.logger.warning(
                    "%s: %.0f%% of the known rows are missing, more than max_deleted_fraction; no deletions reported. "
                    "If the rows are really deleted, raise max_deleted_fraction for two runs",
                    self.name,
                    100 * sample.missing_fraction,
                )
        else:
            if isinstance(previous_version := state.get("believed_version"), int):
                has_all_rows = lacked_rows is not None and sample.has_all_known
                self._write_activate_version_message(self._stream_version if has_all_rows else previous_version)
            state.update(
                believed_version=self._stream_version,
                known=sample.to_state(),
                lacked_rows=lacked_rows is False and not sample.has_all_known,
            )
        self.write_state()


class ChangesStream(FullTableStream):
    """A stream that Pepper can filter by `updatedAt`. The first run reads all rows, and later runs read the changes."""

    replication_key = "updatedAt"
    # Either key is enough: if a run is killed right after a full refresh, its state has only the version.
    bookmark_keys: ClassVar[tuple[str, ...]] = ("replication_key_value", "version")
    since_parameter: ClassVar[str]
    """The name of the query parameter that selects the rows that changed since a given time."""

    @property
    def full_refresh_days(self) -> int:
        """The number of days after which to read all rows again, to find deletions. 0 means never."""
        return 0

    def rows(self) -> Generator[list[Row], None, None]:
        """Yield the rows that changed since the bookmark minus the lookback. Without a bookmark, yield all rows.

        The new bookmark is the upper bound of the run, not the newest change: a row may change after its page was read,
        and the next run has to find that change. The stream skips rows that have not changed since an earlier run
        emitted them.
        """
        if not self.has_time_to_start():
            return
        until = self.run.upper_bound.get(self.path)
        state, read_until = self.stream_state, self.read_until
        # If a field that balances need is emitted again, read all rows, so that each row is emitted with this field.
        lacking = self._lacking_fields()
        returned = set(state.get("lacking") or ()) - set(lacking)
        read_again = to_instant(state.get("read_again"))
        polled_from = since = None
        if (
            read_until is not None
            and not returned
            and read_again != READ_ALL_AGAIN
            and not self._full_refresh_is_due(until)
        ):
            polled_from = subtract_seconds(read_until, self.run.settings.lookback_seconds)
            since = min(polled_from, read_again or polled_from)
        # Repeat a complete read only once. Otherwise, every run would read a list completely if its rows always move.
        second_from = polled_from or (None if read_again == READ_ALL_AGAIN else READ_ALL_AGAIN)
        recent_rows = RecentRows(None if since is None else state.get("border"))
        reread_from = self.reread_from(until)
        self._order = order = TimeOrder()

        def prepare(row: Row) -> Row | None:
            instant = self.complete_row(row)
            order.add(instant)
            if since is not None and instant is not None and not is_at_or_after(instant, since):
                return None
            selected = self.select_fields(row)
            return selected if recent_rows.add(selected, instant, reread_from) else None

        if since is None and (self.full_refresh_days or self.replication_method != REPLICATION_INCREMENTAL):
            yield from self.read_all(prepare)
            recent_rows.drop_earlier_runs()
            self._note_second_read(second_from)
            self.write_bookmark(until, border=recent_rows.to_state(reread_from), refreshed_until=until, lacking=lacking)
            return
        if self.full_refresh_days:
            self._stream_version = state.get("version")
            state.pop("lacked_rows", None)
        query = self.query()
        if since is not None:
            # Ask from one millisecond earlier, because Pepper's filter may or may not include the time itself.
            query[self.since_parameter] = subtract_seconds(since, MILLISECOND.total_seconds())
        # Only a poll may stop at the time limit: restarting a poll is cheap, and restarting a full load is expensive.
        pages = self.pages(query, can_wait=self.run.time_limit.allows if since else always)
        try:
            yield from self.emit(pages, prepare, f"since {since}" if since else "from the start")
        except TimeLimitReached:
            self.logger.warning("%s: not read, because Pepper asked to wait longer than max_run_seconds", self.name)
            self.run.postponed.append(f"{self.name} not read, because Pepper asked to wait")
            return
        # If a row changes and later changes back, the tap must emit both changes. So it remembers only the row's
        # newest form.
        recent_rows.drop_earlier_runs()
        self._note_second_read(second_from)
        self.write_bookmark(until, border=recent_rows.to_state(reread_from), lacking=lacking)

    def pages(
        self, query: Mapping[str, str], cancel: Event | None = None, can_wait: CanWait = always
    ) -> Iterator[Page]:
        """Read the pages of a query, and watch whether their rows may move."""
        for page in super().pages(query, cancel, can_wait):
            self._order.begin_page(to_bound(page.date) if page.date else None)
            yield page

    def _note_second_read(self, read_from: str | None) -> None:
        """If rows may have moved between the pages, note in the bookmark from where the next run reads them again.

        If Pepper sorts the rows by the time of their last change, a row moves when it changes. A row that moves while
        the tap reads the pages may be on none of them.
        """
        read_again = read_from if self._order.may_shift else None
        if read_again and not self.is_test and self.replication_method == REPLICATION_INCREMENTAL:
            self.logger.info("%s: rows may have moved while they were read; the next run reads them again", self.name)
        if read_again or "read_again" in self.stream_state:
            self.stream_state["read_again"] = read_again

    def complete_row(self, row: Row) -> str | None:
        """Convert a row's values in place before the row is emitted.

        Returns:
            The row's instant; None if the row has no valid time.
        """
        return normalize_updated_at(row)

    def _lacking_fields(self) -> list[str]:
        """Return the fields that balances need, but that the catalog or a stream map drops or changes."""
        missing = not_emitted(self.balance_fields, self.metadata, self.effective_schema["properties"])
        return [each for each in self.balance_fields if each in missing or self.run.drops_data(self.name, (each,))]

    def _full_refresh_is_due(self, until: str) -> bool:
        if not self.full_refresh_days or self.is_test:
            return False
        refreshed_until = to_instant(self.stream_state.get("refreshed_until"))
        if refreshed_until is None:
            return True
        return is_at_or_after(subtract_seconds(until, self.full_refresh_days * DAY_SECONDS), refreshed_until)


class WindowedStream(PepperStream):
    """A stream that the tap reads in time windows, several at once."""

    bookmark_keys: ClassVar[tuple[str, ...]] = ("replication_key_value",)

    _reached_new_rows = False
    """Whether this run has read further than all runs before it."""
    _outside = 0
    """The number of rows whose time is clearly outside the window that the tap has asked for."""

    @abstractmethod
    def window_query(self, window: Window) -> dict[str, str]:
        """Return the query parameters for the rows of a window."""

    @abstractmethod
    def check_row(self, row: Row, window: Window) -> tuple[bool, str | None]:
        """Complete a row in place, and check whether it belongs to a window.

        Returns:
            Whether the row belongs to the window, and the row's instant. The instant is None if the row has no valid
            time.
        """

    def rows(self) -> Generator[list[Row], None, None]:
        """Yield the rows from the bookmark minus the lookback to the run's upper bound, window by window.

        Several windows are fetched at once. Unless a new coverage begins, the stream skips rows that have not changed
        since an earlier run emitted them.
        """
        settings, client = self.run.settings, self.run.client
        until = self.run.upper_bound.get(self.path, self.window_query(_last_second(client.clock.now())))
        bookmark, read_until = self.bookmark, self.read_until
        after = resume_after(
            read_until=read_until, start=settings.start_date, until=until, lookback_seconds=settings.lookback_seconds
        )
        if after >= until:
            if read_until is not None:
                reason = f"already read up to {read_until}"
            else:
                reason = f"start_date {after} is in the future"
            self.logger.warning("%s: %s; there is nothing to read", self.name, reason)
        reads = digest([self.emitted_fields, sorted(set(settings.action_types))])
        audit = Audit(self.stream_state.get("audit"), reads, after, until, settings.reconcile_hours)
        coverage = Coverage(
            self.stream_state,
            bookmark=bookmark,
            after=after,
            until=until,
            start_date=settings.start_date,
            types=settings.action_types,
            lookback_seconds=settings.lookback_seconds,
        )
        # A new coverage begins with the lookback. So this run must also emit the rows of the lookback that earlier runs
        # have emitted.
        if self.stream_state.get("border") and not coverage.continues:
            # Clear it now, because a backfill may write a STATE before this run emits these rows.
            self.stream_state["border"] = ""
        recent_rows = RecentRows(None if read_until is None else self.stream_state.get("border"))
        length_seconds = TEST_WINDOW_SECONDS if self.is_test else self._first_window_seconds
        try:
            if coverage.missing and not self.is_test:
                yield from self._backfill(coverage, coverage.missing)
                if coverage.missing:
                    return
            with closing(self._prefetch(split_into_windows(after, until, lambda: length_seconds))) as prefetched:
                for window, pages in prefetched:
                    reread_from = self.reread_from(window.until)
                    prepare = self._row_filter(window, recent_rows, reread_from, audit)
                    pages_filled = yield from self.emit(pages, prepare, f"window {window}", _time_left(window, until))
                    if bookmark is None or window.until >= bookmark:
                        recent_rows.drop_earlier_runs()
                    self._cover(coverage, window, recent_rows.skipped_until)
                    self.write_bookmark(
                        window.until, border=recent_rows.to_state(reread_from), audit=audit.to_state(reread_from)
                    )
                    self._reached_new_rows = read_until is None or window.until > read_until
                    fraction = seconds_between(after, window.until) / seconds_between(after, until)
                    display.update(f"{self.name} up to {window.until[:MINUTE_CHARS]}", fraction)
                    length_seconds = next_window_seconds(window.seconds, pages_filled, self._longest_window_seconds)
                    if window.until < until and not self._can_wait(0):
                        self.run.postponed.append(f"{self.name} read up to {window.until}")
                        return
            if not self.is_test:
                yield from self._run_audit(audit, until)
        except TimeLimitReached:
            self.run.postponed.append(f"{self.name} read up to {self.bookmark}, because Pepper asked to wait")

    @property
    def _longest_window_seconds(self) -> float:
        return float(self.run.settings.window_hours * HOUR_SECONDS)

    @property
    def _first_window_seconds(self) -> float:
        return min(WINDOW_SECONDS_FIRST, self._longest_window_seconds)

    def _prefetch(self, windows: Iterator[Window]) -> Generator[tuple[Window, Iterator[Page]], None, None]:
        return prefetch(
            windows,
            lambda window, cancel: self.pages(self.window_query(window), cancel, self._can_wait),
            workers=1 if self.is_test else self.run.settings.concurrency,
            size=lambda page: len(page.rows),
            size_max=PREFETCHED_ROWS_MAX,
            on_cancel=self.run.client.limiter.notify,
        )

    def _backfill(self, coverage: Coverage, missing: Window) -> Generator[list[Row], None, None]:
        """Yield the rows from the interval before the coverage, newest window first.

        With this order, the coverage in the STATE is a single interval after each window.
        """
        self.logger.info("%s: first reading %s, because earlier runs have not read all of it", self.name, missing)
        length_seconds = self._first_window_seconds
        with closing(self._prefetch(split_backwards(missing, lambda: length_seconds))) as prefetched:
            for window, pages in prefetched:

                def prepare(row: Row, window: Window = window) -> Row | None:
                    return self.select_fields(row) if self._belongs(row, window)[0] else None

                pages_filled = yield from self.emit(pages, prepare, f"window {window}")
                self._cover(coverage, window)
                self.write_state()
                self._reached_new_rows = True
                display.update(
                    f"{self.name} back to {window.after[:MINUTE_CHARS]}",
                    seconds_between(window.after, missing.until) / missing.seconds,
                )
                length_seconds = next_window_seconds(window.seconds, pages_filled, self._longest_window_seconds)
                if coverage.missing and not self._can_wait(0):
                    self.run.postponed.append(f"{self.name} read back to {window.after}")
                    return

    def _cover(self, coverage: Coverage, window: Window, skipped_until: str | None = None) -> None:
        """Add a window to the coverage in the STATE. If the target may lack some actions, leave `read` empty."""
        if self.is_test or self.replication_method != REPLICATION_INCREMENTAL:
            return
        coverage.add(window, skipped_until)
        self.stream_state.update(coverage.to_state())
        if self._hides_actions:
            self.stream_state["read"] = []

    @cached_property
    def _hides_actions(self) -> bool:
        """Whether the target may lack some actions, or fields that it needs for the sums of balances."""
        names = {field.split(".")[0] for field in self.sum_fields}
        return (
            self.run.drops_data(self.name, names)
            or bool(self.config.get("flattening_enabled"))
            or bool(not_emitted(self.sum_fields, self.metadata, self.effective_schema["properties"]))
        )

    def log_summary(self, failure: Exception | None) -> None:
        """Also warn of rows from outside the windows."""
        super().log_summary(failure)
        if self._outside:
            self.logger.warning(
                "%s: skipped %s from outside the windows that the tap asked for. Nothing is missing if Pepper ignores "
                "the filter. But if Pepper filters by another time than it shows, rows may be missing",
                self.name,
                counted(self._outside, "row"),
            )

    def _can_wait(self, seconds: float) -> bool:
        """Return whether time is left after a wait of `seconds`.

        The answer is always True until the run has read further than all earlier runs, so that each run makes progress.
        """
        return not self._reached_new_rows or self.run.time_limit.allows_actions(seconds)

    def _row_filter(
        self, window: Window, recent_rows: RecentRows, reread_from: str, audit: Audit
    ) -> Callable[[Row], Row | None]:
        """Return a function that skips rows that an earlier run emitted, and rows outside the window.

        Pepper returns rows outside the window if it ignores the filter.
        """

        def prepare(row: Row) -> Row | None:
            belongs, instant = self._belongs(row, window)
            if not belongs:
                return None
            selected = self.select_fields(row)
            audit.record(selected, instant)
            return selected if recent_rows.add(selected, instant, reread_from) else None

        return prepare

    def _belongs(self, row: Row, window: Window) -> tuple[bool, str | None]:
        """Return the result of `check_row`, and count the row if its time is clearly outside the window."""
        belongs, instant = self.check_row(row, window)
        self._outside += not belongs and instant is not None and not window.widened.contains(instant)
        return belongs, instant

    def _run_audit(self, audit: Audit, until: str) -> Generator[list[Row], None, None]:
        """Read each due hour a second time. If the rows differ from the first read, emit the hour again."""
        for hour in audit.due_hours():
            if not self._can_wait(0):
                self.run.postponed.append(f"{self.name} audited up to {hour}")
                return
            window = hour_window(hour)

            def prepare(row: Row, window: Window = window, hour: str = hour) -> Row | None:
                belongs, instant = self._belongs(row, window)
                return self.select_fields(row) if belongs and instant and instant.startswith(hour) else None

            if audit.is_tallied(hour):
                pages = self.pages(self.window_query(window), can_wait=self._can_wait)
                rows = (prepare(row) for page in pages for row in page.rows)
                late = audit.compare(hour, {digest(row) for row in rows if row is not None})
                is_emitted_again = late is not None
                if late is not None:
                    finding = f"{counted(late, 'action')} arrived" if late else "actions changed"
                    self.logger.warning(
                        "%s: hour %s: %s later than lookback_seconds; emitting the hour again. If this happens often, "
                        "raise lookback_seconds",
                        self.name,
                        hour,
                        finding,
                    )
            else:
                # The settings have changed since the first read, so a comparison would find differences.
                audit.skip(hour)
                is_emitted_again = True
            if is_emitted_again:
                yield from self.emit(self.pages(self.window_query(window)), prepare, f"audit of {window}")
            self.write_bookmark(until, audit=audit.to_state(self.reread_from(until)))


def normalize_updated_at(row: Row) -> str | None:
    """Convert a row's `updatedAt` to an instant in place.

    Returns:
        The instant, or None if `updatedAt` is missing or invalid. In that case the row stays unchanged.
    """
    instant = to_instant(from_json(row.get("updatedAt")))
    if instant is not None:
        row["updatedAt"] = to_json(instant)
    return instant


def _add_keys(pages: Iterable[Page], sample: KeySample) -> Iterator[Page]:
    for page in pages:
        for row in page.rows:
            sample.add(row.get("_id"))
        yield page


def _new_version(date: datetime, previous_version: object) -> int:
    """Return the time in milliseconds since 1970, or the previous version plus 1 if that is more."""
    version = int(date.astimezone(UTC).timestamp() * 1000)
    return max(version, previous_version + 1) if isinstance(previous_version, int) else version


def _time_left(window: Window, until: str) -> str:
    """Return the text for the log that says how much time is left to read after this window."""
    seconds = seconds_between(window.until, until)
    return f", {duration(timedelta(seconds=seconds))} left to read" if seconds > 0 else ""


def _last_second(now: datetime) -> Window:
    """Return a window that contains few actions or none, for a request that only asks Pepper for the time."""
    return Window(to_bound(now - timedelta(seconds=1)), to_bound(now))
