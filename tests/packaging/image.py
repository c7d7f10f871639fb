"""`./dev deploy`: build the image of deploy/Dockerfile with buildah, and run its jobs on a simulated Pepper.

The command needs root, but no container registry: debootstrap makes a stand-in for the base image. The stand-in has the
name that the Dockerfile uses, and Debian's Python in the same version.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import PROJECT, pepper_settings
from tests.helpers.target import query

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCKERFILE = PROJECT / "deploy" / "Dockerfile"
# A Debian release, and the version of its Python, which must be the version in the Dockerfile.
DEBIAN, PYTHON = "trixie", "3.13"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
STEP_SECONDS_MAX = 900


def main() -> None:
    """Build the image, load and verify in a container, and compare the balances with Pepper's.

    The argument is the folder that keeps the base system for later runs.
    """
    base = Path(sys.argv[1]).resolve()
    if not base.exists():
        make_base(base)
    with tempfile.TemporaryDirectory(dir=base.parent) as name:
        buildah = Buildah(Path(name))
        buildah.commit(base, from_line())
        buildah("build", "--pull-never", "--file", str(DOCKERFILE), "--tag", "pepper-crm", str(PROJECT))
        check(buildah)


def from_line() -> str:
    (found,) = re.findall(r"^FROM (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found == f"python:{PYTHON}-slim", f"{found}: change the stand-in, too"
    return found


def make_base(folder: Path) -> None:
    """Make a small Debian with Python in /usr/local, as in the image that the Dockerfile names."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(exist_ok=True)
    run(["debootstrap", "--variant=minbase", "--include=python3-venv,ca-certificates", DEBIAN, str(part)])
    run(["chroot", str(part), "python3", "-m", "venv", "/usr/local"])
    # pip must trust the same certificates as this machine.
    shutil.copy(f"/{CERTIFICATES}", part / CERTIFICATES)
    part.rename(folder)


class Buildah:
    """Runs Buildah with a storage of its own, and with options that need no more than a chroot."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--storage-driver", "vfs", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def __call__(self, command: str, *arguments: str) -> str:
        """Run a command of buildah; return its output."""
        isolation = ["--isolation", "chroot"] if command in {"build", "run"} else []
        return run(["buildah", *self._options, command, *isolation, *arguments])

    def commit(self, folder: Path, name: str) -> None:
        """Make an image from a folder."""
        container = self("from", "scratch")
        self("add", "--quiet", container, str(folder), "/")
        self("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self("commit", "--quiet", "--rm", container, name)

    def start(self, image: str, variables: Mapping[str, str]) -> tuple[str, list[str], list[str]]:
        """Create a container; return it with the image's entry point and its default arguments."""
        container = self("from", "--pull-never", image)
        for name, value in variables.items():
            self("config", "--env", f"{name}={value}", container)
        config = json.loads(self("inspect", "--type", "image", image))["OCIv1"]["config"]
        return container, config["Entrypoint"], config["Cmd"]


def check(buildah: Buildah) -> None:
    world = World(users=5, days=1, now=datetime.now(UTC))
    with Sandbox(world) as sandbox:
        container, entry_point, arguments = buildah.start(
            "pepper-crm",
            {
                **pepper_settings(sandbox),
                "TAP_PEPPER_START_DATE": (world.now - timedelta(days=3)).isoformat(),
                "TARGET_CRM_SQLALCHEMY_URL": "sqlite:////srv/crm/crm.db",
            },
        )
        printed = {
            command: buildah("run", container, "--", *command.split())
            for command in (
                "id --user",
                "tap-pepper --about",
                " ".join([*entry_point, *arguments]),
                " ".join([*entry_point, "run", "perks", "crm-balances:verify"]),
                "crm-balances verify",
            )
        }
    assert printed["id --user"] == "10001"
    folder = buildah("mount", container)
    stored = dict(query(f"sqlite:///{folder}/srv/crm/crm.db", "SELECT award_id, points FROM award_balances"))
    assert stored == world.balances()
    buildah("rm", container)
    print(f"Image: {' '.join(entry_point)} {' '.join(arguments)}: {printed['crm-balances verify'].splitlines()[-1]}")


def run(command: list[str]) -> str:
    """Run a command; return its output. Exit if it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=STEP_SECONDS_MAX, check=False)
    if ran.returncode:
        sys.exit(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout.strip()


if __name__ == "__main__":
    main()
