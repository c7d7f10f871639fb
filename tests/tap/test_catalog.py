"""The selection in a catalog, in each form in which other programs write it."""

from __future__ import annotations

from typing import Any

import pytest

from tap_pepper.catalog import complete_selection

FIELDS = {"properties": {"_id": {"type": "string"}, "fullName": {"type": "string"}}}


def root(**metadata: object) -> list[dict[str, Any]]:
    return [{"breadcrumb": [], "metadata": metadata}]


@pytest.mark.parametrize(
    ("stream", "metadata"),
    [
        pytest.param({}, root(selected=True), id="nothing"),
        pytest.param({"metadata": []}, root(selected=True), id="empty-metadata"),
        pytest.param({"selected": True}, root(selected=True), id="old-form"),
        pytest.param({"selected": False}, root(selected=False), id="old-form-deselected"),
        pytest.param({"schema": {**FIELDS, "selected": False}}, root(selected=False), id="old-form-in-the-schema"),
        pytest.param(
            {"metadata": root(inclusion="available")}, root(inclusion="available"), id="metadata-without-a-selection"
        ),
        pytest.param({"selected": True, "metadata": root(selected=False)}, root(selected=False), id="metadata-wins"),
        pytest.param(
            {"selected": True, "metadata": root(inclusion="available")},
            root(inclusion="available", selected=True),
            id="both-forms",
        ),
        pytest.param(
            {"schema": {"properties": {"a": {"selected": False, "properties": {"b": {"selected": True}}}}}},
            [
                *root(selected=True),
                {"breadcrumb": ["properties", "a"], "metadata": {"selected": False}},
                {"breadcrumb": ["properties", "a", "properties", "b"], "metadata": {"selected": True}},
            ],
            id="old-form-in-fields",
        ),
    ],
)
def test_the_metadata_gets_the_selection_from_every_form(
    stream: dict[str, Any], metadata: list[dict[str, Any]]
) -> None:
    entry = {"tap_stream_id": "users", "schema": FIELDS, **stream}
    assert complete_selection({"streams": [entry]}) == {"streams": [{**entry, "metadata": metadata}]}
