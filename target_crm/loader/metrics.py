"""Metrics of a run, logged in the SDK's format."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, cast

from singer_sdk import metrics

if TYPE_CHECKING:
    from target_crm.records.tally import Tally


class Count(str, Enum):
    """The counts of a tally, as metrics."""

    read = "records_read"
    applied = "records_applied"
    duplicate = "records_duplicate"
    superseded = "records_superseded"
    quarantined = "records_quarantined"


class Measure(str, Enum):
    """What else is measured, in seconds."""

    BATCH = metrics.Metric.BATCH_PROCESSING_TIME.value
    LAG = "lag_seconds"


def measured(measure: Measure, seconds: float, stream: str | None = None) -> None:
    """Log so many seconds as a metric of the SDK's kind."""
    kind = "timer" if measure is Measure.BATCH else "gauge"
    tags = {"stream": stream} if stream else {}
    metrics.log(metrics.get_metrics_logger(), metrics.Point(kind, cast("metrics.Metric", measure), seconds, tags))


def log_tally(tally: Tally, stream: str) -> None:
    """Log each count of a tally as a counter of the stream."""
    logger = metrics.get_metrics_logger()
    for count in Count:
        point = metrics.Point("counter", cast("metrics.Metric", count), getattr(tally, count.name), {"stream": stream})
        metrics.log(logger, point)
