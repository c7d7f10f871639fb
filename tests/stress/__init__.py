"""Stress tests: many seeded attempts to break the promises in docs/reliability.md.

`./dev campaign` runs the tests, and `CAMPAIGN=short ./dev campaign` runs fewer cases.

`CAMPAIGN_SEED` and the number of a case determine all random choices of the case. A failure prints both.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from hypothesis import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    Item = TypeVar("Item")

FULL = os.environ.get("CAMPAIGN") == "full"
SEED = int(os.environ.get("CAMPAIGN_SEED", "20261001"))
ONLY = os.environ.get("CAMPAIGN_CASE")
# Shrinking a failure takes minutes. Skip it if only the fact of a failure counts.
PHASES = [Phase.generate] if os.environ.get("CAMPAIGN_SHRINK") == "no" else [Phase.generate, Phase.shrink]

# A long test is divided into these parts, so that several processes can share its cases.
SHARDS = range(4 if FULL else 1)

# The cases of the current test, and their seconds. The summary at the end adds them up.
counts: Counter[str] = Counter()
seconds: Counter[str] = Counter()


def size(short: int, full: int) -> int:
    """Return the number of cases to run."""
    return full if FULL else short


def run_cases(name: str, items: Sequence[Item], case: Callable[[Random, Item], None], shard: int | None = None) -> None:
    """Run a case for each item, or only for the items of a shard. `CAMPAIGN_CASE` selects one case."""
    mine = range(len(items)) if shard is None else range(shard, len(items), len(SHARDS))
    for index in mine if ONLY is None else [int(ONLY)]:
        began = time.perf_counter()
        try:
            case(Random(f"{SEED} {name} {index}"), items[index])
        except BaseException:
            full = "CAMPAIGN=full " if FULL else ""
            test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
            print(f"To reproduce: {full}CAMPAIGN_SEED={SEED} CAMPAIGN_CASE={index} ./dev test '{test}'")
            raise
        count(name, time.perf_counter() - began)


def count(name: str, took_seconds: float = 0, cases: int = 1) -> None:
    """Add to the cases of the current test."""
    counts[name] += cases
    seconds[name] += took_seconds
