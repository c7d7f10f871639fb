"""Build the project's wheel and sdist, and install the wheel without a package registry."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from typing import TYPE_CHECKING

from tests.helpers.commands import PROJECT, RUN_SECONDS_MAX

if TYPE_CHECKING:
    from pathlib import Path

BORROWED = {
    "borrowed.pth": sysconfig.get_path("purelib"),
    "borrowed-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: borrowed\nVersion: 1\n",
    "borrowed-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def build(folder: Path) -> tuple[Path, Path]:
    """Build sdist and wheel without the network, and return their paths."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        timeout=RUN_SECONDS_MAX,
    )
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def borrowed(folder: Path) -> Path:
    """Create a wheel that adds this environment's packages, except editable ones, to another environment."""
    path = folder / "borrowed-1-py3-none-any.whl"
    record = "".join(f"{name},,\n" for name in (*BORROWED, "borrowed-1.dist-info/RECORD"))
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**BORROWED, "borrowed-1.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return path


def install_arguments(folder: Path, wheel: Path) -> list[str]:
    """Return arguments so that an installer needs no registry. The wheel comes last, so callers can append extras."""
    return ["--no-deps", str(borrowed(folder)), str(wheel)]
