"""The files in deploy/ work, as far as this machine can run them, with a temporary folder instead of /srv/crm."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from sqlalchemy.exc import ProgrammingError

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import PROJECT, RUN_SECONDS_MAX, Pipeline, command, environment, pepper_settings, run_script
from tests.helpers.postgres import PROGRAMS, new_database
from tests.helpers.target import execute, query

if TYPE_CHECKING:
    from collections.abc import Mapping

DEPLOY = PROJECT / "deploy"
NOW = datetime(2026, 3, 29, tzinfo=UTC)
# Meltano starts several processes in sequence.
JOB_SECONDS_MAX = 300


@dataclass(frozen=True)
class Project:
    """A Meltano project as in the docs: meltano.yml, settings in `.env`, the Python environment in `.venv`."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, str]) -> Project:
        """Create the project in a folder."""
        folder.mkdir()
        shutil.copy(PROJECT / "meltano.yml", folder)
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return cls(folder)

    def with_own_path(self, text: str) -> str:
        """Return the text of a file with this project's folder instead of /srv/crm."""
        return text.replace("/srv/crm", str(self.folder))

    def run(self, arguments: str | list[str], **variables: str) -> str:
        """Run a command in the project, with no other environment variables than these; return its output."""
        ran = subprocess.run(
            arguments,
            shell=isinstance(arguments, str),
            env={"HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder), **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS_MAX,
            check=False,
        )
        logs = "".join(log.read_text() for log in self.folder.glob("*.log"))
        assert ran.returncode == 0, ran.stdout + ran.stderr + logs
        return ran.stdout


def balances(url: str) -> dict[str, Any]:
    return dict(query(url, "SELECT award_id, points FROM award_balances"))


def plugin_settings(sandbox: Sandbox, folder: Path) -> dict[str, str]:
    return {**pepper_settings(sandbox), "TARGET_CRM_SQLALCHEMY_URL": f"sqlite:///{folder / 'crm.db'}"}


def test_the_crontab_loads_two_merchants_and_verifies(tmp_path: Path) -> None:
    ours, theirs = (World(seed=seed, users=4, days=1, now=NOW) for seed in (1, 2))
    with Sandbox(ours) as sandbox, Sandbox(theirs, token="b", application_id="shop-b") as other:
        project = Project.create(
            tmp_path / "crm",
            {
                **plugin_settings(sandbox, tmp_path),
                "TAP_PEPPER__SHOP_B_API_URL": other.url,
                "TAP_PEPPER__SHOP_B_AUTH_TOKEN": other.token,
                "TARGET_CRM__SHOP_B_SQLALCHEMY_URL": f"sqlite:///{tmp_path / 'shop_b.db'}",
                "TARGET_CRM__SHOP_B_DEFAULT_TARGET_SCHEMA": "",
            },
        )
        crontab = project.with_own_path((DEPLOY / "crontab").read_text())
        variables = dict(re.findall(r"^(\w+)=(.*)$", crontab, re.MULTILINE))
        lines = re.findall(r"^(?:[\d*/,-]+ +){5}(.*)$", crontab, re.MULTILINE)
        assert len(lines) == 6
        printed = [project.run(["/bin/sh", "-c", line], **variables) for line in lines]
        (audit,) = re.findall(r"`(meltano [^`]*:compare)`", (PROJECT / "docs" / "many-merchants.md").read_text())
        earlier_requests = len(other.requests)
        audited = project.run(["/bin/sh", "-c", audit], **variables)
        audit_requests = other.requests[earlier_requests:]
    assert balances(f"sqlite:///{tmp_path / 'crm.db'}") == ours.balances()
    assert balances(f"sqlite:///{tmp_path / 'shop_b.db'}") == theirs.balances()
    for merchant, database in ((ours, "crm.db"), (theirs, "shop_b.db")):
        assert query(f"sqlite:///{tmp_path / database}", "SELECT count(*) FROM perks") == [(len(merchant.perks()),)]
    assert printed[:4] == [""] * 4, "cron sends any output by mail"
    assert all("actions: OK" in each for each in printed[4:])
    assert f"Compared {len(theirs.balances())} awards with Pepper: OK" in audited
    assert {request.path for request in audit_requests} == {"/awards"}
    states = subprocess.run(
        command("meltano", "--environment", "prod", "state", "list"),
        cwd=project.folder,
        env=environment(XDG_STATE_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )
    assert sorted(states.stdout.split()) == [
        "prod:tap-pepper--perks-to-target-crm",
        "prod:tap-pepper--shop-b-perks-to-target-crm--shop-b",
        "prod:tap-pepper--shop-b-to-target-crm--shop-b",
        "prod:tap-pepper-to-target-crm",
    ]


def test_the_systemd_units_are_valid_and_run_a_job(tmp_path: Path) -> None:
    world = World(seed=3, users=4, days=1, now=NOW)
    with Sandbox(world) as sandbox:
        project = Project.create(tmp_path / "crm", plugin_settings(sandbox, tmp_path))
        units = tmp_path / "units"
        units.mkdir()
        for unit in (*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")):
            (units / unit.name).write_text(project.with_own_path(unit.read_text()))
        if shutil.which("systemd-analyze"):
            subprocess.run(["systemd-analyze", "verify", *units.iterdir()], check=True, timeout=RUN_SECONDS_MAX)
        service = (units / "pepper-crm@.service").read_text().replace("%i", "loyalty")
        options = dict(re.findall(r"^(ExecStart|Environment)=(.*)$", service, re.MULTILINE))
        name, _, value = options["Environment"].partition("=")
        project.run(options["ExecStart"].split(), **{name: value})
    assert balances(f"sqlite:///{tmp_path / 'crm.db'}") == world.balances()


def test_a_container_and_a_ci_runner_share_state_in_a_database(tmp_path: Path, new_postgres_url: str) -> None:
    world = World(seed=4, users=4, days=1, now=NOW)
    with Sandbox(world) as sandbox:
        secrets = {
            **plugin_settings(sandbox, tmp_path),
            "MELTANO_DATABASE_URI": new_postgres_url.replace("postgresql:", "postgresql+psycopg:"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        }
        dockerfile = (DEPLOY / "Dockerfile").read_text()
        entrypoint, arguments = (
            json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", dockerfile, re.MULTILINE)
        )
        variables = dict(re.findall(r"^ENV (\w+)=(.*)$", dockerfile, re.MULTILINE))
        Project.create(tmp_path / "container", {}).run([*entrypoint, *arguments], **variables, **secrets)
        assert balances(secrets["TARGET_CRM_SQLALCHEMY_URL"]) == world.balances()

        world.advance(timedelta(hours=20))
        earlier_requests = len(sandbox.requests)
        workflow = yaml.safe_load((DEPLOY / "github-actions.yml").read_text())
        job = workflow["jobs"]["loyalty"]
        (step,) = [step for step in job["steps"] if step.get("name") == "Run"]
        condition, daily, frequent = re.findall(r"'(.*?)'", step["env"].pop("TASKS"))
        # YAML reads the key `on` as true.
        assert condition in [each["cron"] for each in workflow[True]["schedule"]]
        assert f"'{condition}'" in workflow["concurrency"]
        variables = {name: secrets[name] for name in (*step["env"], "TAP_PEPPER_API_URL", "PATH")} | job["env"]
        runner = Project.create(tmp_path / "runner", {})
        runner.run(step["run"], **variables, TASKS=frequent)
        later_requests = [request for request in sandbox.requests[earlier_requests:] if request.path == "/awards"]
        runner.run(step["run"], **variables, TASKS=daily)
        assert balances(secrets["TARGET_CRM_SQLALCHEMY_URL"]) == world.balances()
        assert sandbox.requests[-1].path == "/perks"
        execute(secrets["TARGET_CRM_SQLALCHEMY_URL"], "UPDATE award_balances SET points = points + 1")
        with pytest.raises(AssertionError, match="DRIFT, run crm-balances rebuild"):
            runner.run(step["run"], **variables, TASKS=daily)
    assert all(request.parameter("updatedAt") for request in later_requests)


def test_the_kubernetes_cronjobs_load_one_at_a_time_and_verify(tmp_path: Path, new_postgres_url: str) -> None:
    """`./dev deploy` checks them against Kubernetes' own schema."""
    jobs = {
        each["metadata"]["name"]: each["spec"] for each in yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text())
    }
    pods = {name: job["jobTemplate"]["spec"]["template"]["spec"] for name, job in jobs.items()}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for name, job in jobs.items():
        assert job["concurrencyPolicy"] == "Forbid"
        assert str(pods[name]["securityContext"]["runAsUser"]) in re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)
    commands = {name: ["meltano", *pod["containers"][0]["args"]] for name, pod in pods.items()}
    world = World(seed=6, users=4, days=1, now=NOW)
    with Sandbox(world) as sandbox:
        settings = {
            **plugin_settings(sandbox, tmp_path),
            "MELTANO_DATABASE_URI": new_database(new_postgres_url.rpartition("/")[0]).replace("://", "+psycopg://"),
            "MELTANO_ENVIRONMENT": "prod",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        }
        project = Project.create(tmp_path / "pod", {})
        project.run(commands["pepper-crm-loyalty"], **settings)
        project.run(commands["pepper-crm-daily"], **settings)
        assert balances(settings["TARGET_CRM_SQLALCHEMY_URL"]) == world.balances()
        execute(settings["TARGET_CRM_SQLALCHEMY_URL"], "UPDATE award_balances SET points = points + 1")
        with pytest.raises(AssertionError, match="DRIFT, run crm-balances rebuild"):
            project.run(commands["pepper-crm-daily"], **settings)


def psql(url: str, file: Path, **variables: str) -> None:
    """Execute a file with psql. Fail at its first error."""
    options = [f"--set={name}={value}" for name, value in variables.items()]
    ran = subprocess.run(
        [PROGRAMS / "psql", url, "--quiet", *options, "--file", file],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_each_role_has_only_the_rights_it_needs(tmp_path: Path, new_postgres_url: str) -> None:
    migration, loader, reader, monitor, dbt = (
        new_postgres_url.replace("//postgres@", f"//crm_{role}@")
        for role in ("migration", "loader", "reader", "monitor", "dbt")
    )
    psql(new_postgres_url, DEPLOY / "roles.sql")
    # There are two merchants with a schema each, and they share the roles. The second merchant's users are loaded, too.
    for number, schema in enumerate(("loyalty", "shop_b")):
        psql(new_postgres_url, DEPLOY / "schema.sql", schema=schema)
        world = World(seed=5 + number, users=4, days=1, now=NOW)
        folder = tmp_path / schema
        folder.mkdir()
        with Sandbox(world) as sandbox:
            settings = {"TARGET_CRM_DEFAULT_TARGET_SCHEMA": schema}
            readers = DEPLOY / "readers.sql"
            if schema == "shop_b":
                settings["TAP_PEPPER_INCLUDE_USERS"] = "true"
                with_users = readers.read_text().replace("-- GRANT", "GRANT")
                readers = folder / readers.name
                readers.write_text(with_users)
            statements = subprocess.run(
                "tap-pepper --config ENV --test=schema | crm-balances ddl --schemas -",
                shell=True,
                env=environment(**pepper_settings(sandbox), **settings, TARGET_CRM_SQLALCHEMY_URL=migration),
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS_MAX,
                check=True,
            ).stdout
            execute(migration, statements)
            psql(migration, readers, schema=schema)
            psql(new_postgres_url, DEPLOY / "dbt.sql", schema=schema)
            pipeline = Pipeline(sandbox, loader, folder, settings)
            pipeline.run()
            world.advance(timedelta(hours=20))
            pipeline.run()
        check_rights(schema, world, loader=loader, reader=reader, monitor=monitor, dbt=dbt)
    with pytest.raises(ProgrammingError, match="permission denied"):
        execute(monitor, "SELECT _id FROM shop_b.users")


def check_rights(schema: str, world: World, *, loader: str, reader: str, monitor: str, dbt: str) -> None:
    """Check what each role may and may not do in a merchant's schema. The roles are given as URLs."""
    assert dict(query(reader, f"SELECT award_id, points FROM {schema}.award_balances")) == world.balances()
    assert query(reader, f"SELECT count(occurred_at) > 0, count(effect) > 0 FROM {schema}.actions") == [(True, True)]
    assert query(reader, f"SELECT sum(points) FROM {schema}.user_balances") == [(sum(world.balances().values()),)]
    for monitoring in ("status", "verify", "coverage"):
        ran = run_script(
            "crm-balances",
            monitoring,
            TARGET_CRM_SQLALCHEMY_URL=monitor,
            TARGET_CRM_DEFAULT_TARGET_SCHEMA=schema,
        )
        assert ran.returncode == 0, ran.stderr
    (sources,) = yaml.safe_load((PROJECT / "dbt" / "models" / "pepper_sources.yml").read_text())["sources"]
    for name in {each["name"] for each in sources["tables"]} - {"rejected_records"}:
        execute(dbt, f"CREATE TABLE {schema}_models.{name} AS SELECT * FROM {schema}.{name}")
    execute(dbt, f"SELECT rejected_id, stream, reason, rejected_at FROM {schema}.rejected_records")
    for url, statement in [
        (loader, f"CREATE TABLE {schema}.mine (id integer)"),
        (loader, f"ALTER TABLE {schema}.actions ADD COLUMN mine integer"),
        (loader, f"DROP TABLE {schema}.actions"),
        (reader, f"SELECT payload FROM {schema}.actions"),
        (reader, f"SELECT payload FROM {schema}.rejected_records"),
        (reader, f"UPDATE {schema}.award_balances SET points = 0"),
        (reader, f"DELETE FROM {schema}.actions"),
        (monitor, f"SELECT payload FROM {schema}.actions"),
        (monitor, f"SELECT payload FROM {schema}.rejected_records"),
        (monitor, f"DELETE FROM {schema}.actions"),
        (dbt, f"SELECT payload FROM {schema}.rejected_records"),
        (dbt, f"CREATE TABLE {schema}.mine (id integer)"),
        (dbt, f"DELETE FROM {schema}.actions"),
    ]:
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
            execute(url, statement)
