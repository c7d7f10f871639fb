"""Apply a seeded fault or a mutant at the start of each Python process that has this folder on its PYTHONPATH."""

import os
import sys

from tests.stress.mutants import MutantFinder
from tests.stress.seeded_faults import FAULTS, apply

if fault := os.environ.get("SEEDED_FAULT"):
    apply(FAULTS[fault])
if mutant := os.environ.get("MUTANT"):
    sys.meta_path.insert(0, MutantFinder(mutant))
