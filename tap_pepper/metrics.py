"""Metrics that the Singer SDK lacks. The tap logs them once per stream, in the SDK's metrics log."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from singer_sdk import metrics


class Metric(StrEnum):
    """The names of the metrics in the log."""

    PAGES = "page_count"
    RETRIES = "http_request_retry_count"
    WAIT = "http_wait_seconds"
    BOOKMARK_LAG = "bookmark_lag_seconds"


def log_metric(metric: Metric, value: float, stream: str) -> None:
    """Log the value of a metric for a stream."""
    kind = "gauge" if metric in (Metric.WAIT, Metric.BOOKMARK_LAG) else "counter"
    name: Any = metric
    point = metrics.Point(kind, name, value, {metrics.Tag.STREAM: stream})
    metrics.log(metrics.get_metrics_logger(), point)
