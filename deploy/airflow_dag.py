"""Run Meltano's jobs as Airflow 3 DAGs.

Set CRM_PROJECT to the folder of meltano.yml, and put `meltano` on the worker's PATH.
"""

import os
from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

# Delete the jobs with `shop-b` if you have only one merchant.
JOBS = {
    "loyalty": "*/5 * * * *",
    "loyalty-shop-b": "1-59/5 * * * *",
    "perks": "17 3 * * *",
    "perks-shop-b": "27 3 * * *",
}

for job, schedule in JOBS.items():
    with DAG(
        dag_id=f"pepper-{job}",
        schedule=schedule,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=1),
    ):
        BashOperator(
            task_id="run",
            bash_command=f"meltano --environment prod run {job}",
            cwd=os.environ.get("CRM_PROJECT", "/srv/crm"),
        )
