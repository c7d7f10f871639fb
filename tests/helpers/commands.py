"""The project's console scripts, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pepper_sandbox.server import Sandbox

PROJECT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
RUN_SECONDS_MAX = 120


def command(name: str, *arguments: str) -> list[str]:
    """A console script of this environment."""
    return [str(SCRIPTS / name), *arguments]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of the plugins or of Meltano, and with the variables given."""
    foreign = ("TAP_", "TARGET_", "MELTANO_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**inherited, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", **variables}


def pepper_settings(sandbox: Sandbox) -> dict[str, str]:
    """The tap's settings for a sandbox, as environment variables."""
    return {
        "TAP_PEPPER_API_URL": sandbox.url,
        "TAP_PEPPER_AUTH_TOKEN": sandbox.token,
        "TAP_PEPPER_APPLICATION_ID": sandbox.application_id,
    }


@dataclass
class Pipeline:
    """`tap-pepper | target-crm`, with the state of one run handed to the next, in a folder of its own."""

    sandbox: Sandbox
    warehouse_url: str
    folder: Path
    tap_settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The state that the last run left."""
        return self.folder / "state.json"

    def run(self) -> None:
        """Run once; fails unless both processes end well."""
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
        return subprocess.run(
            command("crm-balances", "verify", "--json"),
            env=environment(TARGET_CRM_SQLALCHEMY_URL=self.warehouse_url),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
