"""Run the project's console scripts as a user would."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers import fork_client
from tests.helpers.fork_server import FORKED_SCRIPTS, READY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pepper_sandbox.server import Sandbox

PROJECT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
RUN_SECONDS_MAX = 120


def command(name: str, *arguments: str) -> list[str]:
    """Return the command line of a console script. This project's scripts run in a fork: see `fork_server`."""
    if name not in FORKED_SCRIPTS:
        return real_command(name, *arguments)
    return [sys.executable, "-ISE", str(Path(fork_client.__file__)), _fork_server(), name, *arguments]


def real_command(name: str, *arguments: str) -> list[str]:
    """Return the command line of a console script without the fork, for tests of how Python starts or ends it."""
    return [str(SCRIPTS / name), *arguments]


@cache
def _fork_server() -> str:
    """Start the fork server of this process, and return the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="crm-fork-")
    address = f"{folder.name}/socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fork_server", address],
        cwd=PROJECT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )

    def stop() -> None:
        server.kill()
        server.communicate()
        folder.cleanup()

    atexit.register(stop)
    assert server.stdout is not None
    assert server.stdout.readline().strip() == READY
    return address


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of the plugins and Meltano, and add these variables."""
    foreign = ("TAP_", "TARGET_", "MELTANO_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**inherited, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", **variables}


def run_script(
    name: str, *arguments: str, cwd: Path | None = None, stdin: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a console script to its end with these variables, and capture what it prints."""
    return subprocess.run(
        command(name, *arguments),
        env=environment(**variables),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


def pepper_settings(sandbox: Sandbox) -> dict[str, str]:
    """Return the tap's settings for a sandbox as environment variables."""
    return {
        "TAP_PEPPER_API_URL": sandbox.url,
        "TAP_PEPPER_AUTH_TOKEN": sandbox.token,
        "TAP_PEPPER_APPLICATION_ID": sandbox.application_id,
    }


@dataclass
class Pipeline:
    """`tap-pepper | target-crm` in a folder; each run resumes from the state of the previous one."""

    sandbox: Sandbox
    warehouse_url: str
    folder: Path
    tap_settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The file with the state of the last run."""
        return self.folder / "state.json"

    def run(self) -> None:
        """Run once. Fail unless both processes exit with 0."""
        settings = environment(
            **pepper_settings(self.sandbox), **self.tap_settings, TARGET_CRM_SQLALCHEMY_URL=self.warehouse_url
        )
        resume = ["--state", str(self.state)] if self.state.exists() else []
        with (self.folder / "tap.log").open("w") as tap_log, (self.folder / "target.log").open("w") as target_log:
            tap = subprocess.Popen(
                command("tap-pepper", "--config", "ENV", *resume),
                env=settings,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=tap_log,
            )
            target = subprocess.run(
                command("target-crm", "--config", "ENV"),
                env=settings,
                cwd=self.folder,
                stdin=tap.stdout,
                stdout=subprocess.PIPE,
                stderr=target_log,
                timeout=RUN_SECONDS_MAX,
                check=False,
            )
            exit_codes = (tap.wait(RUN_SECONDS_MAX), target.returncode)
        logs = (self.folder / "tap.log").read_text() + (self.folder / "target.log").read_text()
        assert exit_codes == (0, 0), logs
        self.state.write_bytes(target.stdout.splitlines()[-1])

    def verify(self) -> subprocess.CompletedProcess[str]:
        """Run `crm-balances verify --json` on the warehouse."""
        return run_script(
            "crm-balances", "verify", "--json", cwd=self.folder, TARGET_CRM_SQLALCHEMY_URL=self.warehouse_url
        )
