"""What README and meltano.yml say of the settings is what the plugins say of themselves."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from tests.commands import PROJECT, RUN_SECONDS_MAX, command

PLUGINS = ["tap-pepper", "target-crm"]
# Settings that the SDK adds; README names the one that users want.
BUILT_IN = ("stream_maps", "stream_map_config", "faker_config", "flattening_")


@cache
def about(plugin: str) -> dict[str, Any]:
    """What the plugin tells of itself, but for versions and for what the SDK adds."""
    told = subprocess.run(
        command(plugin, "--about", "--format=json"),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )
    whole = json.loads(told.stdout)
    properties = whole["settings"]["properties"]
    own = {name: definition for name, definition in properties.items() if not name.startswith(BUILT_IN)}
    return {**{name: whole[name] for name in ("name", "description", "capabilities")}, "settings": own}


def settings(plugin: str) -> dict[str, dict[str, Any]]:
    """The plugin's own settings."""
    own: dict[str, dict[str, Any]] = about(plugin)["settings"]
    return own


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_tells_of_itself_what_is_in_the_snapshot(plugin: str) -> None:
    """After a wanted change: `GOLDEN=renew ./dev test tests/test_docs.py`."""
    snapshot = PROJECT / "tests" / "snapshots" / f"{plugin}.about.json"
    if os.environ.get("GOLDEN") == "renew":
        snapshot.write_text(json.dumps(about(plugin), indent=2) + "\n")
    assert about(plugin) == json.loads(snapshot.read_text())


def as_table(plugin: str) -> str:
    """A row a setting: name, default, description, environment variable."""
    prefix = plugin.upper().replace("-", "_")
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for name, definition in settings(plugin).items():
        default = definition.get("default")
        shown = "" if default in (None, []) else f"`{json.dumps(default).strip(chr(34))}`"
        required = "**required**" if default is None and name in ("auth_token", "application_id") else shown
        rows.append(f"| `{name}`<br>`{prefix}_{name.upper()}` | {required} | {definition['description']} |")
    return "\n".join(rows)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_readme_tells_the_settings_that_about_tells(plugin: str) -> None:
    """`GOLDEN=renew ./dev test tests/test_docs.py` writes the tables anew."""
    readme = PROJECT / "README.md"
    head, rest = readme.read_text().split(f"<!-- settings: {plugin} -->\n", 1)
    table, tail = rest.split("<!-- end -->", 1)
    expected = as_table(plugin) + "\n"
    if os.environ.get("GOLDEN") == "renew":
        readme.write_text(f"{head}<!-- settings: {plugin} -->\n{expected}<!-- end -->{tail}")
        return
    assert table == expected


@pytest.mark.parametrize("plugin", PLUGINS)
def test_meltano_knows_every_setting_with_its_default(plugin: str) -> None:
    project = yaml.safe_load((PROJECT / "meltano.yml").read_text())
    plugins = [*project["plugins"]["extractors"], *project["plugins"]["loaders"]]
    (declared,) = [entry["settings"] for entry in plugins if entry["name"] == plugin]
    assert {entry["name"]: entry.get("value") for entry in declared} == {
        name: definition.get("default") for name, definition in settings(plugin).items()
    }
    assert {entry["name"] for entry in declared if entry.get("sensitive")} == {
        name for name, definition in settings(plugin).items() if definition.get("secret")
    }
