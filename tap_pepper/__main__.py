"""The console script. A run every five minutes mostly finds nothing new, and then its imports are what it takes."""

from __future__ import annotations

import gc


def main() -> None:
    """Run tap-pepper."""
    # Thousands of classes are made now, and no garbage. What is imported stays, and need not be looked through later.
    gc.disable()
    from tap_pepper import tap  # noqa: PLC0415 - while no garbage is looked for

    gc.freeze()
    gc.enable()
    tap.main()


if __name__ == "__main__":
    main()
