"""The console scripts."""

from __future__ import annotations

import gc
import sys

from pepper_runtime.startup import import_script

# The rows of a batch are not garbage, so a collection every 700 new objects, Python's default, would find nothing.
GC_THRESHOLD_OBJECTS = 50_000
# The thread that commits needs the GIL after each reply of the warehouse. With Python's default of 5 ms it would wait
# longer for the thread that reads than for the warehouse.
SWITCH_INTERVAL_SECONDS = 0.0001


def main() -> None:
    """Run target-crm."""
    _run("target_crm.loader.target")


def balances() -> None:
    """Run crm-balances."""
    _run("target_crm.balances_cli.cli")


def _run(module: str) -> None:
    script = import_script(module)
    gc.set_threshold(GC_THRESHOLD_OBJECTS)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    script.main()


if __name__ == "__main__":
    main()
