"""Vega-Lite specifications of the report's charts. This module does no I/O.

Colours are CSS variables of the page, so that one SVG works in light and dark mode. Sizes are in CSS pixels. A
`tooltip` appears only if the page's script draws the chart.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rows = Sequence[Mapping[str, Any]]
    Spec = dict[str, Any]

BAR_PX = 26
# The height of the unit's name, which is below the bars of a bar chart.
UNIT_PX = 24
# In bar charts, NUMBER_PX is the width that is reserved for the number at the end of a bar. LABELS_SHARE is the share
# of the chart's width that is reserved for labels.
NUMBER_PX = 72
LABELS_SHARE = 0.36
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_COLOURS = {"issued": "var(--issued)", "refunded": "var(--refunded)", "redeemed": "var(--redeemed)"}
_CONFIG: Spec = {
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "background": None,
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "labelFontSize": 12,
        "labelPadding": 6,
        "titleColor": "var(--muted)",
        "titleFontSize": 12,
        "titleFontWeight": 400,
        "titlePadding": 8,
        "ticks": False,
        "domainColor": "var(--line)",
        "gridColor": "var(--line)",
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "orient": "top",
        "titleColor": "var(--muted)",
        "titleFontSize": 12,
        "titleFontWeight": 400,
        "symbolType": "square",
        "symbolStrokeWidth": 0,
        "padding": 0,
        "offset": 12,
    },
}
_DAY = {"field": "day", "type": "temporal", "scale": {"type": "utc"}}
_POINTS_FORMAT = ",~r"
_POINTS_AXIS = {
    "tickCount": 5,
    "labelExpr": f"abs(datum.value) < 1000 ? format(datum.value, '{_POINTS_FORMAT}') : format(datum.value, '~s')",
}


def _chart(width: int, height: int, values: list[dict[str, Any]], **more: Any) -> Spec:
    """Return a specification whose size includes the axes."""
    return {
        "width": width,
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 0, "right": 8, "top": 4, "bottom": 0},
        "config": _CONFIG,
        "data": {"values": values},
        **more,
    }


def _days_axis(width: int) -> dict[str, Any]:
    labels = {"format": "%-d %b", "labelOverlap": "greedy", "labelSeparation": 16}
    return {"title": None, "grid": False, "tickCount": width // 90, **labels}


def _numeric(field: str, title: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, "format": _POINTS_FORMAT}


def _nominal(field: str, title: str) -> dict[str, Any]:
    return {"field": field, "type": "nominal", "title": title}


def _tooltip(*numbers: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the lines of a tooltip: the day, then the numbers, given as (field, title)."""
    day = {"field": "day", "type": "temporal", "title": "day", "format": "%-d %b %Y", "timeUnit": "utcyearmonthdate"}
    return [day, *(_numeric(field, title) for field, title in numbers)]


def outstanding(days: Rows, width: int) -> Spec:
    """Chart the outstanding points at the end of each day."""
    values = [{"day": day["day"].isoformat(), "points": float(day["outstanding"])} for day in days]
    # Add a point after the last day, so that the last step is as wide as the others.
    end = {**values[-1], "day": (days[-1]["day"] + timedelta(days=1)).isoformat(), "is_end": True}
    whole_days = {**_DAY, "timeUnit": "utcyearmonthdate", "axis": _days_axis(width)}
    area = {
        "mark": {
            "type": "area",
            "interpolate": "step-after",
            "color": "var(--issued)",
            "fillOpacity": 0.16,
            "line": {"color": "var(--issued)"},
        },
        "encoding": {
            "y": {"field": "points", "type": "quantitative", "title": "points outstanding", "axis": _POINTS_AXIS}
        },
    }
    # Add a band per day, as high as the chart. Without bands, the area would have a single tooltip for all days.
    bands = {
        "name": "days",
        "transform": [{"filter": "!datum.is_end"}],
        "mark": {"type": "rect", "color": "var(--ink)", "fillOpacity": 0},
        "encoding": {"tooltip": _tooltip(("points", "points outstanding"))},
    }
    return _chart(width, 240, [*values, end], encoding={"x": whole_days}, layer=[area, bands])


def moved(days: Rows, width: int) -> Spec:
    """Chart the points issued and refunded per day above the axis, and the points redeemed below it."""
    values = [
        {"day": day["day"].isoformat(), "kind": kind, "points": sign * float(day[kind]), "number": float(day[kind])}
        for day in days
        for kind, sign in (("issued", 1), ("refunded", 1), ("redeemed", -1))
        if day[kind] or kind == "issued"
    ]
    return _chart(
        width,
        240,
        values,
        mark={"type": "bar"},
        encoding={
            "x": {**_DAY, "timeUnit": "utcyearmonthdate", "axis": _days_axis(width)},
            "y": {
                "field": "points",
                "type": "quantitative",
                "stack": "zero",
                "title": "points per day",
                "axis": _POINTS_AXIS,
            },
            "color": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(_COLOURS), "range": list(_COLOURS.values())},
            },
            "order": {"field": "kind"},
            "tooltip": [*_tooltip(), _nominal("kind", "kind"), _numeric("number", "points")],
        },
    )


def months(points: Sequence[tuple[str, float]], width: int) -> Spec:
    """Chart a column of points for each month, in the given order."""
    values = [{"month": month, "points": number} for month, number in points]
    return _chart(
        width,
        240,
        values,
        mark={"type": "bar", "color": "var(--issued)"},
        encoding={
            "x": {
                "field": "month",
                "type": "ordinal",
                "sort": None,
                "axis": {"title": "month of issue", "labelAngle": -45, "labelOverlap": True},
            },
            "y": {"field": "points", "type": "quantitative", "title": "points outstanding", "axis": _POINTS_AXIS},
            "tooltip": [_nominal("month", "issued"), _numeric("points", "points outstanding")],
        },
    )


def bars(numbers: Sequence[tuple[str, float]], unit: str, width: int) -> Spec:
    """Chart a bar for each number, in the given order. Each bar has its label on the left and its number at the end."""
    limit_px = round(width * LABELS_SHARE)
    values = [
        {"place": place, "label": _fitted(label, limit_px), "name": label, "number": number}
        for place, (label, number) in enumerate(numbers)
    ]
    least, most = (choose(0, *(number for _, number in numbers), 0) for choose in (min, max))
    room = (most - least or 1) * NUMBER_PX / (width - limit_px)
    domain = [least - room * (least < 0), most + room * (most > 0 or least == 0)]
    text = {"type": "text", "baseline": "middle", "fontSize": 12}
    offset = {"dx": {"expr": "datum.number < 0 ? -6 : 6"}, "align": {"expr": "datum.number < 0 ? 'right' : 'left'"}}
    number = {
        "field": "number",
        "type": "quantitative",
        "title": unit,
        "axis": {"labels": False, "grid": False, "domain": False, "titleAnchor": "start", "titlePadding": 2},
        "scale": {"domain": domain, "nice": False},
    }
    tooltip = [_nominal("name", "name"), _numeric("number", unit)]
    return _chart(
        width,
        BAR_PX * len(values) + UNIT_PX,
        values,
        encoding={"y": {"field": "place", "type": "ordinal", "axis": None}},
        layer=[
            {
                "mark": {"type": "bar", "color": "var(--issued)", "height": {"band": 0.66}},
                "encoding": {"x": number, "tooltip": tooltip},
            },
            {
                "mark": {**text, **offset, "color": "var(--ink)"},
                "encoding": {
                    "x": number,
                    "text": {"field": "number", "type": "quantitative", "format": _POINTS_FORMAT},
                },
            },
            {
                "mark": {**text, "x": -8, "align": "right", "color": "var(--muted)"},
                "encoding": {"text": {"field": "label", "type": "nominal"}, "tooltip": tooltip},
            },
        ],
    )


def _text_px(text: str) -> int:
    """Estimate the width of text in a 12 px font. Wide East Asian characters are as wide as they are high."""
    return sum(12 if east_asian_width(character) in "WF" else 7 for character in text)


def _fitted(text: str, limit_px: int) -> str:
    """Shorten a text to fit a width. Vega itself would cut the text in the middle of a character."""
    if _text_px(text) <= limit_px:
        return text
    while _text_px(text) > limit_px - 7:
        text = text[:-1]
    return f"{text}\N{HORIZONTAL ELLIPSIS}"


def week(hours: Rows, width: int) -> Spec:
    """Chart actions per hour of the week. The more actions an hour has, the darker its cell is."""
    values = [
        {"hour": f"{row['hour']}:00", "day": WEEKDAYS[row["weekday"]], "actions": row["actions"]} for row in hours
    ]
    most = max(row["actions"] for row in hours)
    return _chart(
        width,
        7 * BAR_PX + 84,
        values,
        mark={"type": "rect", "color": "var(--issued)", "cornerRadius": 2},
        encoding={
            "x": {
                "field": "hour",
                "type": "ordinal",
                "sort": None,
                "title": "hour of the day",
                "scale": {"paddingInner": 0.12},
                "axis": {"values": ["0:00", "6:00", "12:00", "18:00"], "labelAngle": 0, "domain": False},
            },
            "y": {
                "field": "day",
                "type": "ordinal",
                "sort": list(WEEKDAYS),
                "scale": {"paddingInner": 0.12},
                "axis": {"title": None, "domain": False},
            },
            "opacity": {
                "field": "actions",
                "type": "quantitative",
                "scale": {"domain": [0, max(most, 1)], "range": [0.06, 1]},
                "legend": {
                    "title": "actions per hour of the week",
                    "titleOrient": "left",
                    "symbolFillColor": "var(--issued)",
                    "values": sorted({0, round(most / 2), most}),
                },
            },
            "tooltip": [_nominal("day", "day"), _nominal("hour", "from"), _numeric("actions", "actions")],
        },
    )
