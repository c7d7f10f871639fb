"""Apply `SEEDED_FAULT` at the start of every Python process that has this folder on its PYTHONPATH."""

import os

from tests.stress.seeded_faults import FAULTS, apply

apply(FAULTS[os.environ["SEEDED_FAULT"]])
