"""The table in docs/warehouses.md: what a run of the cases has found, never written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance import test_conformance
from tests.conformance.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "warehouses.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"
# A case with variants has the worst of their outcomes.
WORDS = {"failed": "**no**", "skipped": "not here", "passed": "yes"}


CASES = [name for name in vars(test_conformance) if name.startswith("test_")]


def title(case: str) -> str:
    """A test's name as a sentence."""
    return case.removeprefix("test_").replace("_", " ").capitalize()


def as_markdown(outcomes: Mapping[tuple[str, str], Iterable[str]], before: str) -> str:
    """A row a case, a column an engine, from all outcomes of each (case, engine).

    What this run didn't try is as the table before has it.
    """
    (_, *titles), _, *old_rows = map(_cells, before.strip().splitlines())
    old = {(name, engine): cell for name, *cells in old_rows for engine, cell in zip(titles, cells, strict=True)}
    rows = [["case", *(engine.title for engine in ENGINES.values())], ["---"] * (len(ENGINES) + 1)]
    for case in CASES:
        cells = []
        for each, engine in ENGINES.items():
            worst = next((word for word in WORDS if word in outcomes.get((case, each), ())), None)
            cells.append(WORDS[worst] if worst else old.get((title(case), engine.title), "not tried"))
        rows.append([title(case), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def write(outcomes: Mapping[tuple[str, str], Iterable[str]]) -> None:
    """Put the table into the document."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    table, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{as_markdown(outcomes, table)}\n{END}{after}")


def documented_titles() -> list[str]:
    """The first column of the table in the document."""
    table = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    return [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
