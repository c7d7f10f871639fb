"""The Hub definitions are up to date and valid, and suffice to add each plugin to a project and run it."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from sqlalchemy.exc import OperationalError

from hub import __main__ as hub
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from target_crm.balances_cli.cli import crm_balances
from tests.helpers.commands import PROJECT, environment, pepper_settings, run_script
from tests.helpers.packages import build, install_arguments
from tests.helpers.target import execute, query

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 3, 29, tzinfo=UTC)
HUB = PROJECT / "hub"
DEFINITIONS = {
    "extractors": HUB / "extractors" / "tap-pepper.yml",
    "loaders": HUB / "loaders" / "target-crm.yml",
    "utilities": HUB / "utilities" / "crm-balances.yml",
}
# Fields of the Hub that Meltano's schema lacks.
HUB_FIELDS = {
    *("maintenance_status", "quality", "domain_url", "keywords", "definition", "next_steps", "settings_preamble"),
    *("usage", "prereq", "supported_python_versions", "log_parser"),
}


def test_the_definitions_match_dev_hub() -> None:
    stale = [path.name for path, text in hub.definitions().items() if path.read_text() != text]
    assert not stale, "run ./dev hub"


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_definition_matches_meltanos_schema(kind: str) -> None:
    definition = yaml.safe_load(DEFINITIONS[kind].read_text())
    assert {"quality", "maintenance_status", "keywords", "domain_url"} <= definition.keys()
    plugin = {name: value for name, value in definition.items() if name not in HUB_FIELDS}
    schema = json.loads((files("meltano") / "schemas" / "meltano.schema.json").read_text())
    jsonschema.validate({"plugins": {kind: [plugin]}}, schema)


@pytest.mark.parametrize("logo", sorted((HUB / "logos").iterdir()), ids=lambda logo: logo.stem)
def test_a_logo_is_a_square_drawing_without_links_or_scripts(logo: Path) -> None:
    drawing = ET.fromstring(logo.read_text())
    assert drawing.get("viewBox") == "0 0 32 32"
    assert drawing.get("aria-label")
    names = {element.tag.partition("}")[2] for element in drawing.iter()}
    assert names <= {"svg", "path", "circle", "ellipse"}
    logos = {Path(yaml.safe_load(path.read_text())["logo_url"]).name for path in DEFINITIONS.values()}
    assert logo.name in logos


def test_the_selection_names_no_personal_data() -> None:
    selection = yaml.safe_load(DEFINITIONS["extractors"].read_text())["select"]
    assert {"actions.*", "awards.*", "perks.*"} <= set(selection)
    assert not any(fnmatch("users.fullName", pattern) for pattern in selection)


@pytest.mark.parametrize("kind", ["loaders", "utilities"])
def test_meltano_runs_every_command_of_crm_balances(kind: str) -> None:
    commands = yaml.safe_load(DEFINITIONS[kind].read_text())["commands"]
    assert commands.keys() == crm_balances.commands.keys()
    assert all((each["executable"], each["args"]) == ("crm-balances", name) for name, each in commands.items())


@pytest.mark.parametrize("kind", ["loaders", "utilities"])
def test_pip_url_has_the_extras_that_the_commands_need(kind: str) -> None:
    definition = yaml.safe_load(DEFINITIONS[kind].read_text())
    assert "report" in definition["commands"]
    assert "report" in Requirement(definition["pip_url"]).extras
    assert definition.get("settings_group_validation") != [[]]


def test_a_new_meltano_project_adds_and_runs_all_plugins_from_their_definitions(tmp_path: Path) -> None:
    _, wheel = build(tmp_path)
    project = tmp_path / "project"
    world = World(seed=17, users=5, days=1, now=NOW)
    with Sandbox(world) as sandbox:
        settings = {
            **pepper_settings(sandbox),
            "TARGET_CRM_SQLALCHEMY_URL": f"sqlite:///{tmp_path / 'crm.db'}",
            **meltano_settings(tmp_path),
            "UV_OFFLINE": "1",
            # This alone must not load personal data, because neither the docs nor the definition select it.
            "TAP_PEPPER_INCLUDE_USERS": "true",
        }
        meltano(tmp_path, settings, "init", "project")
        commands = add_plugins(project, settings, " ".join(install_arguments(tmp_path, wheel)))
        assert (project / ".meltano" / "extractors" / "tap-pepper" / "venv").is_dir()
        verified = shell(project, settings, commands)
        invoke = "meltano --environment prod invoke"
        compared = shell(project, settings, f"{invoke} tap-pepper--audit | {invoke} target-crm:compare")
        meltano(project, settings, "job", "add", "daily", "--tasks", "[tap-pepper target-crm crm-balances:verify]")
        execute(settings["TARGET_CRM_SQLALCHEMY_URL"], "UPDATE award_balances SET points = points + 1")
        failed = meltano(project, settings, "run", "daily", exit_code=1)
    assert "actions: OK" in verified
    assert f"Compared {len(world.balances())} awards with Pepper: OK" in compared
    assert (project / "loyalty-report.html").read_text().startswith("<!doctype html>")
    assert "DRIFT, run crm-balances rebuild" in failed
    execute(settings["TARGET_CRM_SQLALCHEMY_URL"], "UPDATE award_balances SET points = points - 1")
    assert len(query(settings["TARGET_CRM_SQLALCHEMY_URL"], "SELECT * FROM award_balances")) == len(world.balances())
    assert query(settings["TARGET_CRM_SQLALCHEMY_URL"], "SELECT count(*) FROM perks") == [(len(world.perks()),)]
    with pytest.raises(OperationalError, match="no such table"):
        query(settings["TARGET_CRM_SQLALCHEMY_URL"], "SELECT * FROM users")


def add_plugins(project: Path, settings: Mapping[str, Any], pip_url: str) -> str:
    """Add the plugins to a project as the docs say; return the commands with which the docs run them."""
    page = (PROJECT / "docs" / "meltano.md").read_text()
    section = page.partition("## Add the plugins to an existing project\n")[2].partition("\n## ")[0]
    copying, adding, entries, running = re.findall(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    copying = copying.replace("../pepper-crm", str(PROJECT)).replace("/path/to/pepper-crm", pip_url)
    shell(project, settings, copying + adding)
    project_file = project / "meltano.yml"
    added, whole = yaml.safe_load(entries), yaml.safe_load(project_file.read_text())
    whole["plugins"]["extractors"] += added["plugins"]["extractors"]
    project_file.write_text(yaml.safe_dump({**whole, "jobs": added["jobs"]}))
    return running


def shell(folder: Path, settings: Mapping[str, str], script: str) -> str:
    """Run a script in a folder; return its output."""
    ran = subprocess.run(
        ["sh", "-ec", script], cwd=folder, env=environment(**settings), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_adding_a_plugin_again_renews_its_definition_and_keeps_config_and_selection(tmp_path: Path) -> None:
    settings = meltano_settings(tmp_path)
    file, project_file = tmp_path / "tap-pepper.yml", tmp_path / "project" / "meltano.yml"
    definition = yaml.safe_load(DEFINITIONS["extractors"].read_text())
    older = {**definition, "settings": definition["settings"][:2]}
    chosen = {"config": {"page_size": 50}, "select": ["actions.*"]}
    meltano(tmp_path, settings, "init", "project")

    for each, added in ((older, {}), (definition, chosen)):
        project = yaml.safe_load(project_file.read_text())
        for plugin in project.get("plugins", {}).get("extractors", []):
            plugin.update(added)
        project_file.write_text(yaml.safe_dump(project))
        file.write_text(yaml.safe_dump(each))
        meltano(project_file.parent, settings, "add", "--no-install", "--from-ref", str(file), "tap-pepper")

    (renewed,) = yaml.safe_load(project_file.read_text())["plugins"]["extractors"]
    assert renewed["settings"] == definition["settings"]
    assert {name: renewed[name] for name in chosen} == chosen


def meltano_settings(folder: Path) -> dict[str, str]:
    """Return variables that keep Meltano off the network, and its own files in a folder."""
    return {
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false",
        "MELTANO_CLI_DISABLE_VERSION_CHECK": "true",
        "XDG_STATE_HOME": str(folder),
    }


def meltano(folder: Path, settings: Mapping[str, Any], *arguments: str, exit_code: int = 0) -> str:
    """Run Meltano in a project; return its output and its log."""
    ran = run_script("meltano", *arguments, cwd=folder, **settings)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr
