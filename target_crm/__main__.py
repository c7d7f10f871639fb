"""The entry points of the commands `target-crm` and `crm-balances`."""

from __future__ import annotations

import gc
import sys

from pepper_runtime.startup import import_script

# By default, Python's garbage collector runs after every 700 to 2,000 new objects, depending on Python's version. While
# a batch fills, the collector would find nothing to free, because the batch keeps its rows.
GC_THRESHOLD_OBJECTS = 50_000
# The committing thread needs the GIL after each reply from the warehouse. With Python's default switch interval of
# 5 ms, the committing thread would wait longer for the reading thread than for the warehouse.
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
