"""Log the metrics of a run in the SDK's format."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from singer_sdk import metrics

from pepper_runtime.progress import display

if TYPE_CHECKING:
    from collections.abc import Mapping

    from target_crm.loader.batcher import Batch
    from target_crm.records.tally import Tally


class Count(StrEnum):
    """The fields of a tally, each with the name of its metric."""

    read = "records_read"
    applied = "records_applied"
    duplicate = "records_duplicate"
    superseded = "records_superseded"
    quarantined = "records_quarantined"


class Duration(StrEnum):
    """The metrics that are measured in seconds."""

    BATCH = metrics.Metric.BATCH_PROCESSING_TIME.value
    LAG = "lag_seconds"


class RunMetrics:
    """Counts records, and measures the duration of batches and the lag behind the newest event.

    The log and the progress display on the terminal show these numbers.
    """

    def __init__(self) -> None:
        self._newest_at: datetime | None = None
        self._record_counters: dict[str, metrics.Counter] = {}

    def count_batch(self, batch: Batch, seconds: float) -> None:
        """Record a committed batch and its duration."""
        _log("timer", Duration.BATCH, seconds)
        times = [sink.newest_at(part) for sink, part in batch.parts.items()]
        self._newest_at = max((time for time in (*times, self._newest_at) if time), default=None)
        for sink, part in batch.parts.items():
            if sink.stream not in self._record_counters:
                self._record_counters[sink.stream] = metrics.record_counter(sink.stream)
            self._record_counters[sink.stream].increment(len(part.rows) + len(part.incomplete) + part.refused)
        display.advance(batch.records)
        if self._newest_at:
            lag = datetime.now(UTC) - self._newest_at
            display.update(f"{lag - lag % timedelta(seconds=1)} behind")

    def finish(self, tallies: Mapping[str, Tally]) -> None:
        """Log the counts of each stream's records, and the lag at the end of the run."""
        for counter in self._record_counters.values():
            counter.exit()
        for stream, tally in tallies.items():
            for count in Count:
                _log("counter", count, getattr(tally, count.name), stream)
        if self._newest_at:
            _log("gauge", Duration.LAG, (datetime.now(UTC) - self._newest_at).total_seconds(), "actions")


def _log(kind: str, metric: Count | Duration, value: float, stream: str | None = None) -> None:
    tags = {} if stream is None else {"stream": stream}
    point = metrics.Point(kind, cast("metrics.Metric", metric), value, tags)
    metrics.log(metrics.get_metrics_logger(), point)
