"""The table in docs/warehouses.md, which a run of the cases writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance import test_conformance
from tests.conformance.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "warehouses.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"
# The worst outcome comes first. A case with several variants gets the worst of their outcomes.
WORDS = {"failed": "**no**", "skipped": "not here", "passed": "yes"}


CASES = [name for name in vars(test_conformance) if name.startswith("test_")]


def title(case: str) -> str:
    """Turn a test's name into a sentence."""
    return case.removeprefix("test_").replace("_", " ").capitalize()


def as_markdown(outcomes: Mapping[tuple[str, str], Iterable[str]], before: str) -> str:
    """Format the table: a row per case, a column per engine, from the outcomes of each (case, engine).

    Cells that this run has not tried keep their contents.
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
    """Write the table into the document."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    table, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{as_markdown(outcomes, table)}\n{END}{after}")


def documented_titles() -> list[str]:
    """Return the first column of the table in the document."""
    table = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    return [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
