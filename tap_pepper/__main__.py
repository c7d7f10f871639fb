"""The console script."""

from __future__ import annotations

from pepper_runtime.startup import import_script


def main() -> None:
    """Import the tap with the garbage collector off, and run it."""
    import_script("tap_pepper.tap").main()


if __name__ == "__main__":
    main()
