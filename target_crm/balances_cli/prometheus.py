"""Format a status as Prometheus metrics, for the node exporter's textfile collector.

Source of the format: Prometheus, "Exposition formats", text-based format 0.0.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target_crm.sql.load_runs import DONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from target_crm.balances_cli.status import Status

    Samples = Mapping[str, float | datetime | None]

PREFIX = "pepper_crm_"


def as_metrics(status: Status) -> str:
    """Format a status as metrics. If a value is unknown, leave out its sample.

    All samples have the label `schema`, so that one folder can contain files for several schemas of one database.
    """
    return "\n".join(line for metric in _metrics(status) for line in _lines(status.schema, *metric))


def _metrics(status: Status) -> Iterator[tuple[str, str, str | None, Samples]]:
    """Yield the name, help text, label and samples of each metric. A metric without a label has only one sample."""
    streams = {each.stream: each for each in status.streams}
    yield "stream_rows", "Rows that are not deleted.", "stream", {name: each.rows for name, each in streams.items()}
    yield (
        "stream_rejected_records",
        "Records in quarantine.",
        "stream",
        {name: each.rejected for name, each in streams.items()},
    )
    for name, text in (
        ("newest_at", "The time of the newest event. If the stream has none, the time when its newest row was read."),
        ("loaded_at", "When the newest row was loaded."),
        ("read_at", "When a finished run last read the stream."),
    ):
        times = {stream: getattr(each, name) for stream, each in streams.items()}
        yield f"stream_{name.removesuffix('_at')}_timestamp_seconds", text, "stream", times
    yield (
        "rejected_records",
        "Records in quarantine, including lines that belong to no stream.",
        None,
        {"": status.rejected},
    )
    yield "drifted", "1 if a check of the balances found a difference, else 0.", None, {"": status.drifted}
    yield (
        "check_differences",
        "The number of differences that each check of the balances found.",
        "check",
        {check.name: check.differing for check in status.checks},
    )
    holes = status.coverage.holes
    text = "Holes in the coverage: intervals for which actions were never read."
    yield "coverage_holes", text, None, {"": len(holes)}
    seconds = sum((hole["until"] - hole["from"]).total_seconds() for hole in holes)
    yield "coverage_holes_seconds", "Total length of the holes in the coverage.", None, {"": seconds}
    yield (
        "complete_until_timestamp_seconds",
        "The end of a merchant's newest covered interval. If there is only one merchant, its name is empty.",
        "merchant",
        status.coverage.complete_until,
    )
    if ended := [run for run in status.runs if run["exit_state"]]:
        text = "1 if the last run that ended succeeded, 0 if it failed."
        yield "last_run_done", text, None, {"": ended[0]["exit_state"] == DONE}
        yield (
            "last_run_finished_timestamp_seconds",
            "When the last run ended. It may have failed.",
            None,
            {"": ended[0]["finished_at"]},
        )


def _lines(schema: str, name: str, text: str, label: str | None, samples: Samples) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} gauge"
    for key, value in samples.items():
        if value is not None:
            number = float(value) if isinstance(value, int | float) else value.timestamp()
            labels = {"schema": schema, **({label: key} if label else {})}
            yield f"{PREFIX}{name}{{{','.join(_label(*each) for each in labels.items())}}} {number:.15g}"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'
