"""The table of cases in docs/warehouses.md is complete."""

from __future__ import annotations

from tests.conformance import matrix


def test_the_document_has_a_line_for_each_case() -> None:
    assert matrix.documented_titles() == [matrix.title(case) for case in matrix.CASES]
