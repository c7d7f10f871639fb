"""The console scripts must start quickly, because a run without new data spends most of its time on the start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.helpers.commands import RUN_SECONDS_MAX, environment, real_command
from tests.helpers.tap import Script, config, listing
from tests.helpers.target import ACTIONS, state

if TYPE_CHECKING:
    from pathlib import Path

UNUSED = {"jinja2", "opentelemetry", "pandas", "pendulum", "psycopg", "pyarrow", "rich", "sqlalchemy.orm", "vl_convert"}


def run(folder: Path, name: str, *arguments: str, messages: str = "", **settings: str) -> tuple[str, set[str]]:
    """Run a console script. Return its output and the modules that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *real_command(name, *arguments)],
        input=messages,
        env=environment(**settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )
    return done.stdout, set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


def test_a_poll_without_new_data_imports_only_what_it_needs(tmp_path: Path) -> None:
    with Script(listing()) as pepper:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config(pepper.url, start_date="2026-10-01")))
        output, imported = run(tmp_path, "tap-pepper", "--config", str(path))
    assert '"STATE"' in output
    assert "requests" in imported
    assert not imported & UNUSED


def test_an_empty_load_and_its_verification_import_only_what_they_need(tmp_path: Path) -> None:
    settings = {"TARGET_CRM_SQLALCHEMY_URL": "sqlite:///crm.db"}
    messages = f"{ACTIONS}\n{state({'bookmarks': {}})}\n"
    output, imported = run(tmp_path, "target-crm", "--config", "ENV", messages=messages, **settings)
    assert json.loads(output) == {"bookmarks": {}}
    assert "sqlite3" in imported
    assert not imported & UNUSED

    output, imported = run(tmp_path, "crm-balances", "verify", **settings)
    assert "Verified 0 balances against 0 actions" in output
    assert "sqlite3" in imported
    assert not imported & UNUSED
