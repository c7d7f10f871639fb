"""README, docs/ and meltano.yml are correct: every command runs, every setting matches the plugins'."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import yaml

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from target_crm.sql.tables import DESCRIPTION, METADATA_DOCS, Tables
from tests.helpers.commands import PROJECT, RUN_SECONDS_MAX, SCRIPTS, command, environment, pepper_settings
from tests.helpers.postgres import PROGRAMS, PostgresServer, free_port
from tests.packaging.dictionary import as_markdown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLUGINS = ["tap-pepper", "target-crm"]
# Settings of the SDK; docs/settings.md documents only `stream_maps`.
BUILT_IN = ("stream_maps", "stream_map_config", "faker_config", "flattening_")


@cache
def about(plugin: str) -> dict[str, Any]:
    """Return the plugin's `--about`, without versions and the SDK's settings."""
    printed = subprocess.run(
        command(plugin, "--about", "--format=json"),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )
    whole = json.loads(printed.stdout)
    properties = whole["settings"]["properties"]
    own = {name: definition for name, definition in properties.items() if not name.startswith(BUILT_IN)}
    return {**{name: whole[name] for name in ("name", "description", "capabilities")}, "settings": own}


def settings(plugin: str) -> dict[str, dict[str, Any]]:
    """Return the plugin's own settings."""
    own: dict[str, dict[str, Any]] = about(plugin)["settings"]
    return own


@pytest.mark.parametrize("plugin", PLUGINS)
def test_about_matches_the_snapshot(plugin: str) -> None:
    """To accept a change: `GOLDEN=renew ./dev test tests/packaging/test_docs.py`."""
    snapshot = PROJECT / "tests" / "snapshots" / f"{plugin}.about.json"
    if os.environ.get("GOLDEN") == "renew":
        snapshot.write_text(json.dumps(about(plugin), indent=2) + "\n")
    assert about(plugin) == json.loads(snapshot.read_text())


def as_table(plugin: str) -> str:
    """Format settings as a table: name, environment variable, default, description."""
    prefix = plugin.upper().replace("-", "_")
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for name, definition in settings(plugin).items():
        default = definition.get("default")
        shown = "" if default in (None, []) else f"`{json.dumps(default).strip(chr(34))}`"
        required = "**required**" if default is None and name in ("auth_token", "application_id") else shown
        rows.append(f"| `{name}`<br>`{prefix}_{name.upper()}` | {required} | {definition['description']} |")
    return "\n".join(rows)


# Run both cases in one worker, because both write the same page when it is renewed.
@pytest.mark.xdist_group("settings-page")
@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_docs_list_the_settings_of_about(plugin: str) -> None:
    """To accept a change: `GOLDEN=renew ./dev test tests/packaging/test_docs.py`."""
    page = PROJECT / "docs" / "settings.md"
    start, end = f"<!-- settings: {plugin} -->\n", "<!-- end -->"
    head, rest = page.read_text().split(start, 1)
    table, tail = rest.split(end, 1)
    expected = as_table(plugin) + "\n"
    if os.environ.get("GOLDEN") == "renew":
        page.write_text(f"{head}{start}{expected}{end}{tail}")
        return
    assert table == expected


def test_the_dictionary_describes_every_table_and_column() -> None:
    """To accept a change: `GOLDEN=renew ./dev test tests/packaging/test_docs.py`."""
    page = PROJECT / "docs" / "dictionary.md"
    if os.environ.get("GOLDEN") == "renew":
        page.write_text(as_markdown())
    assert page.read_text() == as_markdown()


@pytest.mark.parametrize("source", sorted((PROJECT / "docs" / "diagrams").glob("*.txt")), ids=lambda path: path.stem)
def test_a_diagram_is_drawn_from_its_source(source: Path) -> None:
    """To accept a change: `python docs/diagrams/draw.py`."""
    draw = runpy.run_path(str(source.with_name("draw.py")))["draw"]
    assert source.with_suffix(".svg").read_text(encoding="utf-8") == draw(source.read_text(encoding="utf-8"))


WORDS_MAX = 1500


@pytest.mark.parametrize("page", sorted(path.name for path in (PROJECT / "docs").glob("*.md")))
def test_a_page_is_in_the_navigation_and_short_enough(page: str) -> None:
    text = (PROJECT / "docs" / page).read_text()
    # The dictionary is generated, and grows with the tables.
    assert page == "dictionary.md" or len(re.findall(r"[^\s|]+", text)) <= WORDS_MAX
    assert f": {page}\n" in (PROJECT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_meltano_yml_declares_every_setting_with_its_default(plugin: str) -> None:
    project = yaml.safe_load((PROJECT / "meltano.yml").read_text())
    plugins = [*project["plugins"]["extractors"], *project["plugins"]["loaders"]]
    (declared,) = [entry["settings"] for entry in plugins if entry["name"] == plugin]
    assert {entry["name"]: entry.get("value") for entry in declared} == {
        name: definition.get("default") for name, definition in settings(plugin).items()
    }
    assert {entry["name"] for entry in declared if entry.get("sensitive")} == {
        name for name, definition in settings(plugin).items() if definition.get("secret")
    }


@pytest.mark.parametrize("page", ["meltano.md", "many-merchants.md"])
def test_the_entries_in_a_page_are_those_of_meltano_yml(page: str) -> None:
    """The files in deploy/ need them."""
    text = (PROJECT / "docs" / page).read_text()
    (documented,) = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    project = yaml.safe_load((PROJECT / "meltano.yml").read_text())
    for entries, own in ((documented.pop("plugins"), project["plugins"]), (documented, project)):
        for kind, listed in entries.items():
            assert [entry for entry in listed if entry not in own[kind]] == []
    for selection in re.findall(r"config set tap-pepper _select '(.*)'", text):
        assert json.loads(selection) == project["plugins"]["extractors"][0]["select"]


DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))]
# The number of shell blocks that are marked `not run`, because they need the network. The tests run all others.
NOT_RUN = {
    "README.md": 1,
    "docs/CONTRIBUTING.md": 1,
    "docs/deploy.md": 3,
    "docs/install.md": 3,
    "docs/many-merchants.md": 1,
    "docs/meltano.md": 2,
    "docs/tutorial.md": 1,
}
# Some documents run twenty processes in sequence.
DOCUMENT_SECONDS_MAX = 600
BLOCK = re.compile(
    r"^(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>sh|sql)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SCRATCH = ("meltano.yml", "deploy", "hub", "tests/snapshots")
# Replaces ./dev, which would install packages: `shell` uses this environment, other commands only have to exist.
DEV = """\
#!/bin/sh
if [ "$1" = shell ]; then shift; exec "$@"; fi
if [ "$1" = help ]; then exec "{project}/dev" help; fi
"{project}/dev" help | grep -q "^  $1 " || {{ echo "./dev $1: no such command" >&2; exit 1; }}
"""
SQL = """\
import os, sys
from sqlalchemy import create_engine, text
from target_crm.warehouse.connection import parse_url
with create_engine(parse_url(os.environ["TARGET_CRM_SQLALCHEMY_URL"])).begin() as connection:
    for statement in filter(str.strip, sys.stdin.read().split(";\\n")):
        found = connection.execute(text(statement))
        print(*(found if found.returns_rows else ()), sep="\\n")
"""


def blocks(document: str) -> list[re.Match[str]]:
    return list(BLOCK.finditer((PROJECT / document).read_text()))


def as_script(document: str) -> str:
    """Join all blocks of a document into a script, without exports of `…`, because the environment sets them."""
    lines = ["set -euo pipefail"]
    for block in blocks(document):
        if block["mark"]:
            continue
        text = re.sub(r"^export \w+=.*….*\n", "", block["text"], flags=re.MULTILINE)
        query = f"{sys.executable} ~/.query.py <<'END'\n{text}END"
        lines.append(f"echo '+ {document}, block of {block['language']} at {block.start()}'")
        lines.append(text if block["language"] == "sh" else query)
    return "\n".join(lines)


@pytest.fixture
def documented_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A folder with the files that the documents use, a simulated Pepper, and an empty PostgreSQL for psql."""
    for name in SCRATCH:
        source, copy = PROJECT / name, tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
    (tmp_path / ".query.py").write_text(SQL)
    # Pages about an existing installation need the state file that its earlier runs have left.
    (tmp_path / "state.jsonl").write_text("{}\n")
    (tmp_path / "dev").write_text(DEV.format(project=PROJECT))
    (tmp_path / "dev").chmod(0o755)
    world = World(seed=18, users=8, days=3, now=datetime.now(UTC))
    with PostgresServer() as server, Sandbox(world) as sandbox:
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE crm")
        where, _, port = server.url.rpartition("@")[2].partition(":")
        yield environment(
            **pepper_settings(sandbox),
            TARGET_CRM_SQLALCHEMY_URL=f"sqlite:///{tmp_path / 'crm.db'}",
            PGHOST=where,
            PGPORT=port,
            PGDATABASE="crm",
            PGUSER="postgres",
            HOME=str(tmp_path),
            XDG_STATE_HOME=str(tmp_path),
            PATH=f"{tmp_path}:{SCRIPTS}:{PROGRAMS}:{os.defpath}",
        )


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if len(as_script(name).splitlines()) > 1])
def test_every_command_in_a_document_runs(
    document: str, documented_environment: dict[str, str], tmp_path: Path
) -> None:
    script = as_script(document).replace("8765", str(free_port()))
    with (tmp_path / "output.log").open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            env=documented_environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            exit_code = shell.wait(DOCUMENT_SECONDS_MAX)
        finally:
            with suppress(ProcessLookupError):  # The document's commands have left no process running.
                os.killpg(shell.pid, signal.SIGTERM)
    assert exit_code == 0, (tmp_path / "output.log").read_text()


def test_only_known_blocks_are_not_run() -> None:
    marked = {document: sum(bool(block["mark"]) for block in blocks(document)) for document in DOCUMENTS}
    assert {document: count for document, count in marked.items() if count} == NOT_RUN


def test_dbt_describes_the_columns_as_the_dictionary_does() -> None:
    tables = Tables().metadata.tables
    (source,) = yaml.safe_load((PROJECT / "dbt" / "models" / "pepper_sources.yml").read_text())["sources"]
    described = {table["name"]: table for table in source["tables"] if table["name"] in tables}
    assert {"actions", "award_balances", "awards", "rejected_records"} <= described.keys()
    for name, table in described.items():
        assert table["description"] == tables[name].info[DESCRIPTION]
        assert {column["name"]: column["description"] for column in table["columns"]} == {
            column.name: METADATA_DOCS.get(column.name) or column.doc for column in tables[name].columns
        }


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, "true", id="default"),
        pytest.param({"UV_SYSTEM_CERTS": "false"}, "false", id="the-user's-own"),
    ],
)
def test_dev_lets_uv_trust_the_certificates_of_this_machine(
    tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$UV_SYSTEM_CERTS" > {tmp_path}/seen\n')
    uv.chmod(0o755)

    subprocess.run(
        [PROJECT / "dev", "lock"],
        env={"PATH": f"{tmp_path}:{os.defpath}", **variables},
        capture_output=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )

    assert (tmp_path / "seen").read_text() == f"{expected}\n"


def test_ci_and_pre_commit_call_commands_that_exist() -> None:
    usage = subprocess.run([PROJECT / "dev", "help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^  (\w+)  ", usage, re.MULTILINE))
    jobs = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    called = set(jobs["check"]["strategy"]["matrix"]["command"])
    called |= {step["run"].split()[1] for job in jobs.values() for step in job["steps"] if "run" in step} - {
        '"$COMMAND"'
    }
    (repository,) = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    called |= {hook["entry"].split()[1] for hook in repository["hooks"]}
    assert {"test", "lint", "dbt"} <= called <= known
