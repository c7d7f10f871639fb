"""`./dev dbt`: build the dbt package on DuckDB and PostgreSQL, and compare its numbers with plain Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import PROJECT, Pipeline
from tests.helpers.postgres import PostgresServer, new_database
from tests.helpers.target import execute, query

PACKAGE = PROJECT / "dbt"
RUN_SECONDS_MAX = 300
START = datetime(2026, 1, 20, tzinfo=UTC)
LEDGER_START = START - timedelta(days=10)
MOMENTS = [START - timedelta(days=9), *(START + timedelta(days=days, hours=7) for days in (0, 3, 11, 18))]
AS_OF = "select * from ({{{{ pepper_crm.balances_as_of(\"timestamp '{moment}'\") }}}}) as balances"


def main() -> None:
    """Build the models and check them. The argument is the dbt command."""
    dbt = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as name, PostgresServer() as server:
        folder = Path(name)
        for url in (f"duckdb:///{folder / 'crm.duckdb'}", new_database(server.url)):
            engine = url.partition(":")[0]
            (folder / engine).mkdir()
            world, perks = load(url, folder / engine)
            shop = Shop(dbt, folder / engine, url)
            shop.run("deps")
            shop.run("build")
            print(f"{engine}: {check(url, world, perks)}")
            check_late_changes(url, shop)
            check_warnings(url, shop)
            check_holes(url, shop)


def load(url: str, folder: Path) -> tuple[World, dict[str, Any]]:
    """Load several weeks in six runs, with edits and a deleted award. Return the world and all perks that it showed."""
    world = World(seed=19, users=40, days=30, now=START)
    with Sandbox(world) as sandbox:
        pipeline = Pipeline(sandbox, url, folder, {"TAP_PEPPER_START_DATE": LEDGER_START.isoformat()})
        pipeline.run()
        perks = {perk["_id"]: perk for perk in world.perks()}
        for edited in sorted(world.balances())[:5]:
            world.advance(timedelta(days=4))
            world.change_points(edited, Decimal("7.5"))
            pipeline.run()
            perks.update({perk["_id"]: perk for perk in world.perks()})
    # Mark an award with several actions as deleted, near the end of the time.
    deleted = query(url, "SELECT max(award_id) FROM award_balances WHERE action_count > 1")[0][0]
    execute(url, f"UPDATE awards SET _sdc_deleted_at = '2026-02-05 10:00:00' WHERE _id = '{deleted}'")
    # At first, the locations had other titles.
    execute(
        url,
        """UPDATE actions SET payload = CAST(replace(CAST(payload AS varchar), '"title":', '"title":"Old","x":') """
        f"AS json) WHERE occurred_at < '{START:%Y-%m-%d}'",
    )
    return world, perks


class Shop:
    """A dbt project for tests of the package, with models that call the package's macro."""

    def __init__(self, dbt: str, folder: Path, url: str) -> None:
        self._dbt = dbt
        self._folder = folder / "shop"
        where = make_url(url)
        address = (
            {"CRM_HOST": where.host, "CRM_PORT": str(where.port), "CRM_USER": where.username} if where.host else {}
        )
        self._crm_schema = "public" if where.drivername == "postgresql" else "main"
        self._variables = {
            "CRM_ENGINE": where.drivername,
            "CRM_DATABASE": where.database or "",
            **address,
        }
        shutil.copytree(PACKAGE / "integration_tests", self._folder)
        (self._folder / "packages.yml").write_text(
            json.dumps({"packages": [{"local": str(PACKAGE)}]})
        )  # also valid YAML
        for number, moment in enumerate(MOMENTS):
            model = AS_OF.format(moment=f"{moment:%Y-%m-%d %H:%M:%S}")
            (self._folder / "models" / f"as_of_{number}.sql").write_text(model)

    def run(self, *arguments: str) -> str:
        """Run dbt in the project, with warnings as errors; return its output. Exit if it fails."""
        ran = self.attempt("--warn-error", *arguments)
        if ran.returncode:
            sys.exit(f"dbt {' '.join(arguments)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run dbt in the project."""
        return subprocess.run(
            [
                *(self._dbt, "--no-use-colors", *arguments, "--profiles-dir", "."),
                *("--vars", json.dumps({"crm_schema": self._crm_schema})),
            ],
            cwd=self._folder,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self._folder),
                "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
                **self._variables,
            },
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )


def check_late_changes(url: str, shop: Shop) -> None:
    """Build again after a late action, and check that the incremental model equals a full rebuild."""
    execute(
        url,
        "INSERT INTO actions (action_id, type, user_id, award_id, perk_id, occurred_at, effect, points_available, "
        "points_added, loaded_at) SELECT 'late', 'REWARD_EARNED', user_id, award_id, perk_id, first_action_at, "
        "'earned', 3, 2, updated_at FROM award_balances WHERE award_id = "
        "(SELECT min(award_id) FROM award_balances WHERE action_count > 1)",
    )
    days = "SELECT * FROM models.pepper_daily_balances ORDER BY day, perk_id"
    before = query(url, days)
    shop.run("run")
    incremental = query(url, days)
    shop.run("run", "--full-refresh")
    assert incremental == query(url, days)
    assert 0 < len(set(incremental) - set(before)) < len(incremental)


def check_warnings(url: str, shop: Shop) -> None:
    """Check that dbt reports quarantined records, and runs that ended long ago."""
    shop.run("source", "freshness")
    execute(url, "UPDATE load_runs SET finished_at = '2026-01-01 00:00:00'")
    stale = shop.attempt("source", "freshness")
    assert stale.returncode == 1, stale.stdout
    execute(
        url,
        "INSERT INTO rejected_records (rejected_id, stream, reason, input_line, payload, rejected_at, run_id) "
        "VALUES ('1', 'actions', 'no user', 1, '{}', '2026-01-01 00:00:00', 'r')",
    )
    warned = shop.attempt("test", "--select", "pepper_no_rejected_records")
    assert "WARN 1 pepper_no_rejected_records" in warned.stdout, warned.stdout


def check(url: str, world: World, perks: dict[str, Any]) -> str:
    """Compare all models with results that plain Python computes from the ledger; return a summary.

    Raises:
        AssertionError: they differ.
    """
    awards = read_awards(url)
    unedited = {award for award, history in awards.items() if is_explained(history)}
    assert len(unedited) > len(awards) // 3
    compared = 0
    for number, moment in enumerate(MOMENTS):
        found = dict(query(url, f"SELECT award_id, points FROM models.as_of_{number}"))
        expected = {award: points for award in awards if (points := points_at(awards[award], moment)) is not None}
        assert found == expected, moment
        compared += len(expected)
        # The simulated Pepper knows the balances of unedited awards at any time.
        truth = world.balances(moment)
        assert {award: found[award] for award in unedited} == {
            award: truth.get(award, Decimal(0)) for award in unedited
        }
    days, cohorts = check_days(url, awards), check_cohorts(url, awards)
    check_coverage(url, world)
    locations = check_locations(url, world)
    check_perks(url, world, perks, awards)
    return (
        f"{compared} balances as of {len(MOMENTS)} moments ({len(unedited)} awards also compared with Pepper's), "
        f"{days} days by perk, {cohorts} months of cohorts, "
        f"{len(perks)} perks, {locations} locations"
    )


def read_awards(url: str) -> dict[str, dict[str, Any]]:
    """Return each award's user, perk, actions in order, newer snapshot (if any) and time of deletion."""
    found: dict[str, dict[str, Any]] = {}
    for award, user, perk, points, as_of, source, deleted in query(
        url,
        "SELECT award_id, b.user_id, b.perk_id, b.points, as_of, as_of_source, _sdc_deleted_at FROM award_balances b "
        "LEFT JOIN awards ON _id = award_id",
    ):
        snapshot = (utc(as_of), points) if source == "award" else None
        found[award] = {"user": user, "perk": perk, "snapshot": snapshot, "deleted": utc(deleted), "actions": []}
    for award, at, effect, available, added, redeemed, refunded in query(
        url,
        "SELECT award_id, occurred_at, effect, points_available, points_added, points_redeemed, points_refunded "
        "FROM actions WHERE effect IS NOT NULL ORDER BY occurred_at, action_id",
    ):
        delta = {"earned": added, "redeemed": redeemed, "refunded": refunded}[effect]
        found[award]["actions"].append((utc(at), effect, delta, available))
    return found


def utc(found: datetime | None) -> Any:
    """Return a time from the warehouse in UTC, because DuckDB stores times without a time zone."""
    if found is None:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def signed(effect: str, delta: Decimal) -> Decimal:
    return -delta if effect == "redeemed" else delta


def points_at(award: dict[str, Any], moment: datetime) -> Decimal | None:
    """Return the newest observation until a time, else the opening points; None once the award is deleted."""
    if award["deleted"] and award["deleted"] <= moment:
        return None
    observations = [(at, available) for at, _, _, available in award["actions"]]
    observations += [award["snapshot"]] if award["snapshot"] else []
    for at, points in reversed(observations):
        if at <= moment:
            return Decimal(points)
    if award["actions"]:
        _, effect, delta, available = award["actions"][0]
        return Decimal(available - signed(effect, delta))
    return Decimal(award["snapshot"][1])


def is_explained(award: dict[str, Any]) -> bool:
    """Whether the actions form a chain without gaps, and no snapshot is newer."""
    chain = award["actions"]
    steps = pairwise(chain)
    return (
        bool(chain)
        and not award["snapshot"]
        and not award["deleted"]
        and all(before[3] + signed(after[1], after[2]) == after[3] for before, after in steps)
    )


def check_days(url: str, awards: dict[str, dict[str, Any]]) -> int:
    found = {
        (day, perk): figures
        for day, perk, *figures in query(
            url,
            "SELECT day, perk_id, points, changed, earned, redeemed, refunded, actions "
            "FROM models.pepper_daily_balances",
        )
    }
    changed = [at.date() for award in awards.values() for at, *_ in award["actions"]]
    changed += [award["snapshot"][0].date() for award in awards.values() if award["snapshot"]]
    changed += [award["deleted"].date() for award in awards.values() if award["deleted"]]
    days = [min(changed) + timedelta(days=number) for number in range((max(changed) - min(changed)).days + 1)]
    perks = {award["perk"] for award in awards.values()}
    assert found.keys() == {(day, perk) for day in days for perk in perks}
    for day in days:
        for perk in perks:
            own = [award for award in awards.values() if award["perk"] == perk]
            points, before = (
                sum((points_at(award, end_of(each)) or Decimal(0) for award in own), Decimal(0))
                for each in (day, day - timedelta(days=1))
            )
            actions = [action for award in own for action in award["actions"] if action[0].date() == day]
            sums = [
                sum((delta for _, effect, delta, _ in actions if effect == wanted), Decimal(0))
                for wanted in ("earned", "redeemed", "refunded")
            ]
            assert found[day, perk] == [points, points - before, *sums, len(actions)], (day, perk)
    return len(days)


def end_of(day: date) -> datetime:
    return datetime.combine(day, time.max, UTC)


def check_perks(url: str, world: World, shown: dict[str, Any], awards: dict[str, dict[str, Any]]) -> None:
    """Compare `pepper_dim_perk` with all perks that Pepper has ever shown, and with the perks of awards."""
    active = {perk["_id"] for perk in world.perks()}
    expected = {perk: (each["title"], each["type"], perk in active) for perk, each in shown.items()}
    never_shown = {award["perk"] for award in awards.values()} - shown.keys()
    assert shown.keys() - active, "Pepper has deleted a perk"
    assert never_shown
    expected.update(dict.fromkeys(never_shown, (None, None, False)))
    rows = query(url, "SELECT perk_id, title, type, is_active FROM models.pepper_dim_perk")
    assert {perk: tuple(rest) for perk, *rest in rows} == expected
    assert len(rows) == len(expected)


def check_locations(url: str, world: World) -> int:
    """Compare `pepper_dim_location` with Pepper's actions since the ledger's start."""
    expected: dict[str, tuple[str, datetime, datetime, int]] = {}
    for action in world.actions(after=LEDGER_START, until=world.now - timedelta(seconds=5)):
        if location := action["context"].get("location"):
            at = datetime.fromisoformat(action["when"]["timestamp"])
            _, first, _, count = expected.get(location["_id"], ("", at, at, 0))
            # The actions come in the order of time.
            expected[location["_id"]] = (location["title"], first, at, count + 1)
    rows = query(
        url, "SELECT location_id, title, first_action_at, last_action_at, actions FROM models.pepper_dim_location"
    )
    assert {location: (title, utc(first), utc(last), count) for location, title, first, last, count in rows} == expected
    assert len(rows) == len(expected)
    return len(rows)


def check_coverage(url: str, world: World) -> None:
    """Compare `pepper_coverage` with what was read: everything, since the ledger's start."""
    found = query(url, "SELECT kind, after, until FROM models.pepper_coverage")
    assert [(kind, utc(after), utc(until)) for kind, after, until in found] == [
        # Pepper's clock has whole seconds.
        ("read", LEDGER_START, world.now.replace(microsecond=0) - timedelta(seconds=5))
    ]


def check_holes(url: str, shop: Shop) -> None:
    """Compare the intervals and holes with plain Python, after reads of all types of action and reads of only some."""
    every = json.dumps(["AWARD_POINTS_REFUNDED", "REDEEM_PERK", "REWARD_EARNED"])
    reads = [(None, -30, -25), (every, -27, -20), (None, -29, -28), (every, -20, -19), (None, -15, -14)]
    reads += [('["REDEEM_PERK"]', -26, -22), ('["REDEEM_PERK"]', -21, -20)]
    for number, (types, *days) in enumerate(reads):
        recorded_types = f"'{types}'" if types else "NULL"
        after, until = (f"'{LEDGER_START + timedelta(days=day):%Y-%m-%d %H:%M:%S}'" for day in days)
        execute(
            url,
            "INSERT INTO _crm_coverage (interval_id, merchant, action_types, covered_from, covered_until) "
            f"SELECT 'read {number}', max(merchant), {recorded_types}, {after}, {until} "
            "FROM _crm_coverage",
        )
    shop.run("run", "--select", "pepper_coverage")
    recorded: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for types, after, until in query(url, "SELECT action_types, covered_from, covered_until FROM _crm_coverage"):
        recorded["all" if types in {None, every} else types].append((utc(after), utc(until)))
    expected = []
    for types, intervals in recorded.items():
        merged: list[tuple[datetime, datetime]] = []
        for after, until in sorted(intervals):
            if merged and after <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], until))
            else:
                merged.append((after, until))
        expected += [(types, "read", *interval) for interval in merged]
        expected += [(types, "hole", before[1], after[0]) for before, after in pairwise(merged)]
    rows = query(url, "SELECT action_types, kind, after, until FROM models.pepper_coverage")
    found = [(types, kind, utc(after), utc(until)) for types, kind, after, until in rows]
    assert sorted(found) == sorted(expected)
    assert len(found) == 8, "three intervals of all types and two of some, and the holes between them"


def check_cohorts(url: str, awards: dict[str, dict[str, Any]]) -> int:
    by_user: dict[str, list[tuple[date, str, Decimal]]] = defaultdict(list)
    for award in awards.values():
        for at, effect, delta, _ in award["actions"]:
            by_user[award["user"]].append((at.date().replace(day=1), effect, delta))
    expected: dict[tuple[date, date], list[Any]] = {}
    cohorts = {user: min(month for month, *_ in actions) for user, actions in by_user.items()}
    for user, actions in by_user.items():
        cohort = cohorts[user]
        for month, own in groupby(sorted(actions), key=lambda action: action[0]):
            figures = expected.setdefault(
                (cohort, month),
                [
                    12 * (month.year - cohort.year) + month.month - cohort.month,
                    list(cohorts.values()).count(cohort),
                    0,
                    Decimal(0),
                    Decimal(0),
                    Decimal(0),
                ],
            )
            figures[2] += 1
            for _, effect, delta in own:
                figures[("earned", "redeemed", "refunded").index(effect) + 3] += delta
    found = {
        (cohort, month): figures
        for cohort, month, *figures in query(
            url,
            "SELECT cohort_month, month, months_since, cohort_users, active_users, earned, redeemed, refunded "
            "FROM models.pepper_cohorts",
        )
    }
    assert found == expected
    return len(found)


if __name__ == "__main__":
    main()
