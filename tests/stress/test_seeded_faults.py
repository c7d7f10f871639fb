"""The code that each seeded fault breaks still exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.seeded_faults import FAULTS, locate


@pytest.mark.parametrize("name", FAULTS)
def test_the_target_of_a_seeded_fault_exists(name: str) -> None:
    owner, attribute = locate(FAULTS[name].target)
    original = getattr(owner, attribute)
    faulty = FAULTS[name].replace(original)
    assert callable(faulty) is callable(original)
    for test in FAULTS[name].caught_by:
        assert (Path(__file__).parent / f"test_{test}.py").exists()
