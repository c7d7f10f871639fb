"""The wheel and the sdist contain the right files, and the wheel runs outside the project."""

from __future__ import annotations

import json
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.commands import RUN_SECONDS_MAX, environment
from tests.helpers.packages import build, install_arguments
from tests.helpers.target import query

if TYPE_CHECKING:
    from collections.abc import Iterator

THREE_LINES = Path(__file__).parents[1] / "snapshots" / "three_lines.jsonl"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    yield build(tmp_path_factory.mktemp("dist"))


def test_the_wheel_contains_only_the_four_packages(packages: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(packages[1]).namelist()
    assert {name.split("/")[0] for name in names} == {
        *("tap_pepper", "target_crm", "pepper_sandbox", "pepper_runtime"),
        "pepper_crm-0.1.0.dist-info",
    }
    inside = [name for name in names if ".dist-info/" not in name]
    assert {Path(name).suffix for name in inside} == {".py", ".json", ".html", ".js", ".typed"}
    assert {"tap_pepper/schemas/actions.json", "tap_pepper/py.typed", "target_crm/py.typed"} <= set(inside)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_contains_sources_tests_and_docs_but_no_generated_files(
    packages: tuple[Path, Path],
) -> None:
    with tarfile.open(packages[0]) as sdist:
        names = [name.split("/", 1)[1] for name in sdist.getnames()]
    top_level = {name.split("/")[0] for name in names}
    assert top_level == {
        *(
            "tap_pepper",
            "target_crm",
            "pepper_sandbox",
            "pepper_runtime",
            "tests",
            "benchmarks",
            "hub",
            "deploy",
            "dbt",
        ),
        *("deploy", "dbt", "docs", "requirements"),
        *("dev", "meltano.yml", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", ".gitignore"),
    }
    assert not [name for name in names if name.endswith((".pyc", ".db", ".log", ".env"))]


def test_the_wheel_runs_in_a_separate_environment(packages: tuple[Path, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    scripts = tmp_path / "venv" / "bin"

    def run(name: str, *arguments: str, stdin: str = "") -> str:
        ran = subprocess.run(
            [scripts / name, *arguments],
            env=environment(TARGET_CRM_SQLALCHEMY_URL=f"sqlite:///{tmp_path / 'crm.db'}"),
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("pip", "install", "--quiet", "--no-index", *install_arguments(tmp_path, packages[1]))
    where = run("python", "-c", "import tap_pepper, target_crm; print(tap_pepper.__file__, target_crm.__file__)")
    assert all(path.startswith(str(tmp_path)) for path in where.split())
    assert json.loads(run("tap-pepper", "--about", "--format=json"))["version"] == "0.1.0"
    assert run("target-crm", "--config", "ENV", stdin=THREE_LINES.read_text()) == '{"bookmarks":{}}\n'
    assert "Verified 1 balance against 1 action: OK" in run("crm-balances", "verify")
    assert query(f"sqlite:///{tmp_path / 'crm.db'}", "SELECT award_id, points FROM award_balances") == [("w1", 2)]
