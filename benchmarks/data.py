"""Generates actions like those in Pepper's guide, as messages of tap-pepper. Each run generates the same ones.

python -m benchmarks.data 1000000 | target-crm …
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = json.loads((files("tap_pepper") / "schemas" / "actions.json").read_text())
STATE_ROWS = 4_000
# Each action has a random award of this many per action: 100,000 actions belong to about 95,000 awards.
AWARDS_PER_ACTION = 10
EFFECTS = (
    ("REWARD_EARNED", "pointsAdded", 70),
    ("REDEEM_PERK", "pointsRedeemed", 25),
    ("AWARD_POINTS_REFUNDED", "pointsRefunded", 5),
)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
FIRST_SECOND = int(FIRST.timestamp())


def actions(count: int, first: int = 0, awards: int | None = None) -> Iterator[dict[str, Any]]:
    """Generate `count` actions, beginning with number `first`.

    Except for its balance, an action depends on its number and on `awards` only.
    """
    awards = awards or count * AWARDS_PER_ACTION
    balances: dict[int, int] = defaultdict(int)
    for number in range(first, first + count):
        dice = random.Random(number)
        name, points, _ = dice.choices(EFFECTS, [weight for *_, weight in EFFECTS])[0]
        award, delta = dice.randrange(awards), dice.randrange(1, 30)
        balances[award] += -delta if name == "REDEEM_PERK" else delta
        timestamp = (FIRST + timedelta(milliseconds=250 * number)).isoformat(timespec="milliseconds")
        yield {
            # Like Pepper's ids, it begins with the time in seconds.
            "_id": f"{FIRST_SECOND + number // 4:08x}{_id('action', number)[8:]}",
            "context": {
                "tenant": {"_id": _id("tenant", 1), "title": "The Grill"},
                "user": {
                    "_id": _id("user", award // 3),
                    "fullName": f"Tom Jones {award // 3}",
                    "primaryPlatform": "IOS",
                },
                "location": {
                    "_id": _id("location", number % 40),
                    "title": "Arches",
                    "geo": [-0.0970637, 51.5045788],
                    "regions": [],
                    "tags": [""],
                },
                "tags": [],
            },
            "tenantId": _id("tenant", 1),
            "type": name,
            "source": "API_SERVER",
            "version": "0",
            "when": {
                "timezone": "Europe/London",
                "timestamp": timestamp.replace("+00:00", "Z"),
                "year": 2026,
                "monthofyear": 2,
                "weekofyear": 10,
                "dayofmonth": 5,
                "dayofweek": 5,
                "daypart": "LUNCH",
            },
            "metadata": {
                "awardId": _id("award", award),
                "perkId": _id("perk", award % 9),
                "loyaltyEarned": 2,
                points: delta,
                "pointsAvailable": balances[award],
                "trigger": "GLOBAL",
            },
            "environment": "PRODUCTION",
        }


def write_messages(path: Path, count: int, first: int = 0, awards: int | None = None) -> Path:
    """Write actions as Singer messages into a file."""
    with path.open("wb") as output:
        output.writelines(messages(count, first, awards))
    return path


def messages(count: int, first: int = 0, awards: int | None = None) -> Iterator[bytes]:
    """Generate the lines of a SCHEMA message, actions as RECORDs, and a STATE every `STATE_ROWS`."""
    yield _line({"type": "SCHEMA", "stream": "actions", "schema": SCHEMA, "key_properties": ["_id"]})
    extracted_at = "2026-11-25T07:00:00+00:00"
    for place, action in enumerate(actions(count, first, awards), start=1):
        timestamp = action["when"]["timestamp"]
        record = {**action, "when_timestamp": timestamp}
        yield _line({"type": "RECORD", "stream": "actions", "record": record, "time_extracted": extracted_at})
        if place % STATE_ROWS == 0 or place == count:
            yield _line({"type": "STATE", "value": {"bookmarks": {"actions": {"when_timestamp": timestamp}}}})


def _line(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def _id(kind: str, number: int) -> str:
    """An id like Pepper's: 24 hexadecimal digits."""
    return hashlib.blake2b(f"{kind} {number}".encode(), digest_size=12).hexdigest()


if __name__ == "__main__":
    sys.stdout.buffer.writelines(messages(*map(int, sys.argv[1:])))
