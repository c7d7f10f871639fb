"""Long trials against an oracle: short in `./dev test`, in full in `./dev campaign`."""

from __future__ import annotations

import os

FULL = os.environ.get("CAMPAIGN") == "full"
