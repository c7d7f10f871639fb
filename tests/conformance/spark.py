"""A Spark cluster: a master, two workers and a Thrift server (see `./dev`)."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance import Unavailable
from tests.helpers.postgres import free_port
from tests.helpers.target import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS = 600
POLL_SECONDS = 0.5
WORKERS = 2
INSTALLED = Path(__file__).parent.parent.parent / ".dev" / "spark"
LOOPBACK = "127.0.0.1"
PATIENCE = f"-Dspark.worker.timeout={START_SECONDS} -Dspark.network.timeout={START_SECONDS}s"


@contextmanager
def spark() -> Iterator[Callable[[], str]]:
    """Start a cluster; yield a function that returns the URL of a new database."""
    home = next(INSTALLED.glob("lib/python*/site-packages/pyspark"), None)
    if home is None:
        raise Unavailable("Spark is not installed; ./dev warehouses installs it")
    with tempfile.TemporaryDirectory(prefix="pepper-crm-spark-") as folder, ExitStack() as stack:
        master, thrift = free_port(), free_port()
        cluster = f"spark://{LOOPBACK}:{master}"
        deploy = "org.apache.spark.deploy"

        # A machine that is busy with other tests answers late.
        environment = {"SPARK_LOCAL_IP": LOOPBACK, "SPARK_HOME": str(home), "SPARK_DAEMON_JAVA_OPTS": PATIENCE}

        def start(name: str, *command: str) -> None:
            log = stack.enter_context(Path(folder, f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [home / "bin" / command[0], *command[1:]],
                env={**os.environ, **environment},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait, START_SECONDS)
            stack.callback(process.kill)

        address = ("--host", LOOPBACK, "--webui-port", "0")
        start("master", "spark-class", f"{deploy}.master.Master", *address, "--port", str(master))
        for number in range(WORKERS):
            sizes = ("--cores", "1", "--memory", "1g", "--work-dir", f"{folder}/worker_{number}")
            start(f"worker_{number}", "spark-class", f"{deploy}.worker.Worker", *address, *sizes, cluster)
        settings = {
            "spark.cores.max": WORKERS,
            "spark.driver.host": LOOPBACK,
            "spark.executor.memory": "512m",
            "spark.network.timeout": f"{START_SECONDS}s",
            "spark.sql.shuffle.partitions": WORKERS,
            "spark.sql.warehouse.dir": f"{folder}/warehouse",
            "spark.ui.enabled": "false",
            "spark.hadoop.hive.server2.authentication": "NOSASL",
            "spark.hadoop.hive.server2.thrift.bind.host": LOOPBACK,
            "spark.hadoop.hive.server2.thrift.port": thrift,
            "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={folder}/metastore;create=true",
        }
        server = "org.apache.spark.sql.hive.thriftserver.HiveThriftServer2"
        confs = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
        start("thrift", "spark-submit", "--master", cluster, "--class", server, *confs, "spark-internal")
        url = f"spark://{LOOPBACK}:{thrift}/default?auth=NOSASL"
        _wait(url, Path(folder, "thrift.log"))
        numbers = count()

        def new() -> str:
            name = f"crm_{next(numbers)}"
            execute(url, f"CREATE DATABASE {name}")
            return url.replace("/default", f"/{name}")

        yield new


def _wait(url: str, log: Path) -> None:
    """Wait until the cluster answers."""
    deadline_seconds = time.monotonic() + START_SECONDS
    while True:
        try:
            execute(url, "SELECT 1")
        except Exception as error:  # noqa: BLE001 - each driver layer has errors of its own
            if time.monotonic() > deadline_seconds:
                raise RuntimeError(f"Spark did not start ({error}):\n{log.read_text()}") from None
            time.sleep(POLL_SECONDS)
        else:
            return
