"""The console scripts. A run every five minutes mostly finds nothing new, and then its imports are what it takes."""

from __future__ import annotations

import gc
from importlib import import_module


def main() -> None:
    """Run target-crm."""
    _run("target_crm.target")


def balances() -> None:
    """Run crm-balances."""
    _run("target_crm.cli")


def _run(module: str) -> None:
    # Thousands of classes are made now, and no garbage. What is imported stays, and need not be looked through later.
    gc.disable()
    imported = import_module(module)
    gc.freeze()
    gc.enable()
    imported.main()


if __name__ == "__main__":
    main()
