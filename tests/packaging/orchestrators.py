"""`./dev deploy`: run the Airflow DAG and the Dagster job of deploy/ against a simulated Pepper."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import PROJECT, environment, pepper_settings
from tests.helpers.target import query

DEPLOY = PROJECT / "deploy"
RUN_SECONDS_MAX = 600


def main() -> None:
    """Run both orchestrators, whose commands are the arguments, and compare the balances with Pepper's."""
    airflow, dagster = (str(Path(name).resolve()) for name in sys.argv[1:])
    _run("Airflow", [[airflow, "db", "migrate"], [airflow, "dags", "test", "pepper-loyalty"]])
    _run("Dagster", [[dagster, "job", "execute", "-f", str(DEPLOY / "dagster_jobs.py"), "-j", "loyalty"]])


def _run(name: str, commands: list[list[str]]) -> None:
    world = World(users=5, days=1, now=datetime.now(UTC))
    with tempfile.TemporaryDirectory() as folder, Sandbox(world) as sandbox:
        warehouse = f"sqlite:///{folder}/crm.db"
        variables = environment(
            **pepper_settings(sandbox),
            TARGET_CRM_SQLALCHEMY_URL=warehouse,
            CRM_PROJECT=str(PROJECT),
            MELTANO_SYS_DIR_ROOT=f"{folder}/meltano",
            MELTANO_DATABASE_URI=f"sqlite:///{folder}/meltano.db",
            XDG_STATE_HOME=folder,
            AIRFLOW_HOME=folder,
            AIRFLOW__CORE__LOAD_EXAMPLES="false",
        )
        dags = Path(folder) / "dags"
        dags.mkdir()
        shutil.copy(DEPLOY / "airflow_dag.py", dags)
        for command in commands:
            ran = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False
            )
            if ran.returncode:
                sys.exit(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
        stored = dict(query(warehouse, "SELECT award_id, points FROM award_balances"))
    if stored != world.balances():
        sys.exit(f"{name}: the balances differ from Pepper's")
    print(f"{name}: compared {len(stored)} balances with Pepper's: OK")


if __name__ == "__main__":
    main()
