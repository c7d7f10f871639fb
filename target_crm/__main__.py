"""The console scripts. A run every five minutes mostly finds nothing new, and then its imports are what it takes."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

# So many more objects than before, and garbage is looked for.
NEW_OBJECTS_MAX = 50_000
# How long one of two threads may keep the interpreter while the other wants it. Whoever speaks to a warehouse wants it
# after every reply, and as long as usual would wait longer for a thread that reads than for the warehouse.
TURN_SECONDS = 0.0001


def main() -> None:
    """Run target-crm."""
    _run("target_crm.loader.target")


def balances() -> None:
    """Run crm-balances."""
    _run("target_crm.balances_cli.cli")


def _run(module: str) -> None:
    # Thousands of classes are made now, and no garbage. What is imported stays, and need not be looked through later.
    gc.disable()
    imported = import_module(module)
    gc.freeze()
    gc.enable()
    # The rows of a batch are no garbage either: every 700 new ones, as is usual, a look through them would find none.
    gc.set_threshold(NEW_OBJECTS_MAX)
    sys.setswitchinterval(TURN_SECONDS)
    imported.main()


if __name__ == "__main__":
    main()
