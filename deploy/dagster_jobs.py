"""Run Meltano's jobs as scheduled Dagster jobs.

Set CRM_PROJECT to the folder of meltano.yml, and put `meltano` on the PATH.
"""

import os
import subprocess

import dagster as dg

# Delete the jobs with `shop-b` if you have only one merchant.
JOBS = {
    "loyalty": "*/5 * * * *",
    "loyalty-shop-b": "1-59/5 * * * *",
    "perks": "17 3 * * *",
    "perks-shop-b": "27 3 * * *",
}


def dagster_job(meltano_job: str) -> dg.JobDefinition:
    """A job with one op, which runs Meltano and copies its output into Dagster's log."""
    name = meltano_job.replace("-", "_")

    @dg.op(name=f"run_{name}")
    def run(context: dg.OpExecutionContext) -> None:
        with subprocess.Popen(
            ["meltano", "--environment", "prod", "run", meltano_job],
            cwd=os.environ.get("CRM_PROJECT", "/srv/crm"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout or ():
                context.log.info(line.rstrip())
        if process.returncode:
            raise dg.Failure(f"meltano run {meltano_job}: exit code {process.returncode}")

    @dg.job(name=name)
    def job() -> None:
        run()

    return job


defs = dg.Definitions(
    schedules=[dg.ScheduleDefinition(job=dagster_job(job), cron_schedule=cron) for job, cron in JOBS.items()]
)
