"""What operators measure: points in the SDK's metrics log, one each at the end of a stream."""

from __future__ import annotations

from enum import Enum
from typing import Any

from singer_sdk import metrics


class Measure(str, Enum):
    """What the SDK has no name for."""

    PAGES = "page_count"
    RETRIES = "http_request_retry_count"
    WAITED = "http_wait_seconds"
    LAG = "bookmark_lag_seconds"


def measured(measure: Measure, value: float, stream: str) -> None:
    """Log a point: how often, or how many seconds."""
    kind = "gauge" if measure in (Measure.WAITED, Measure.LAG) else "counter"
    named: Any = measure
    point = metrics.Point(kind, named, value, {metrics.Tag.STREAM: stream})
    metrics.log(metrics.get_metrics_logger(), point)
