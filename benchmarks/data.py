"""Generate actions like those of a merchant, as messages of tap-pepper. Each run generates the same actions.

    python -m benchmarks.data mix 1000000 | target-crm …

The *mix* resembles a merchant's programme. A third of the points have fractions. A fifth of the actions have
types that change no balance, and contain long numbers. Some of these contain an order of up to 50 KB. Names have
accents and quotes.
Two percent of the actions are legacy events without points, and four percent are repeated. The *simple* actions look
like those in Pepper's guide, with whole points and plain names.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import defaultdict, deque
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCHEMA = json.loads((files("tap_pepper") / "schemas" / "actions.json").read_text())
STATE_ROWS = 4_000
# Each action gets a random award. There are ten times as many awards as actions, so few actions share an award:
# 100,000 actions have about 95,000 different awards.
AWARDS_PER_ACTION = 10
EFFECTS = {"REWARD_EARNED": "pointsAdded", "REDEEM_PERK": "pointsRedeemed", "AWARD_POINTS_REFUNDED": "pointsRefunded"}
EFFECT_WEIGHTS = 70, 25, 5
OTHER_TYPES = "ORDER_PLACED", "CHECK_IN", "PAYMENT"
NAMES = "Tom Jones", "Zoë Özdemir", "Łucja Błaszczyk", "山田 太郎", 'Anna "Annie" O\'Neill', "Jean-François d'Arc"
TITLES = "Arches", "The “Grill”", 'Bar "Centrale"\nDeli', "Café Zürich"
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
FIRST_SECOND = int(FIRST.timestamp())
OTHER_SHARE, LEGACY_SHARE, FRACTIONS_SHARE, REPEATED_SHARE = 0.2, 0.02, 1 / 3, 0.04
# Among the actions of other types, this share contains an order. Each order has 10 to 500 items of about 100 bytes.
ORDER_SHARE = 0.05
ORDER_ITEMS = 10, 500
# A repeated action is one of the last 1,000 actions, as if a poll read the last minutes again.
REPEATED_AMONG = 1_000


def mixed_actions(count: int, first: int = 0, awards: int | None = None) -> Iterator[dict[str, Any]]:
    """Generate `count` different actions of the mix, and repeat some. The arguments are those of `simple_actions`."""
    recent: deque[dict[str, Any]] = deque(maxlen=REPEATED_AMONG)
    for number, action in enumerate(simple_actions(count, first, awards), start=first):
        dice = random.Random(-1 - number)
        context, metadata = action["context"], action["metadata"]
        context["user"]["fullName"] = f"{dice.choice(NAMES)} {context['user']['_id'][:4]}"
        context["location"]["title"] = dice.choice(TITLES)
        points = EFFECTS[action["type"]]
        if dice.random() < OTHER_SHARE:
            action["type"] = dice.choice(OTHER_TYPES)
            items = range(dice.randint(*ORDER_ITEMS) if dice.random() < ORDER_SHARE else 0)
            action["metadata"] = {
                "orderNumber": dice.randrange(10**17, 10**18),
                "total": dice.random() * 100,
                "items": [{"productId": _id("product", each), "title": "Flat white", "price": 3.4} for each in items],
            }
        elif dice.random() < LEGACY_SHARE:
            del metadata[points], metadata["pointsAvailable"]
        elif dice.random() < FRACTIONS_SHARE:
            metadata[points] = round(metadata[points] * dice.random(), 2)
            metadata["pointsAvailable"] = round(metadata["pointsAvailable"] + dice.random(), 2)
        recent.append(action)
        yield action
        if dice.random() < REPEATED_SHARE:
            yield dice.choice(recent)


def simple_actions(count: int, first: int = 0, awards: int | None = None) -> Iterator[dict[str, Any]]:
    """Generate `count` actions of `awards` different awards, beginning with action number `first`.

    An action depends only on its number and on `awards`, except for its balance.
    """
    awards = awards or count * AWARDS_PER_ACTION
    balances: dict[int, int] = defaultdict(int)
    for number in range(first, first + count):
        dice = random.Random(number)
        name = dice.choices(list(EFFECTS), EFFECT_WEIGHTS)[0]
        points, award, delta = EFFECTS[name], dice.randrange(awards), dice.randrange(1, 30)
        balances[award] += -delta if name == "REDEEM_PERK" else delta
        timestamp = (FIRST + timedelta(milliseconds=250 * number)).isoformat(timespec="milliseconds")
        yield {
            # Pepper's ids also begin with the time in seconds.
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


def _change_points(action: dict[str, Any], change: Callable[[int], float | str]) -> None:
    metadata = action["metadata"]
    for name in (EFFECTS[action["type"]], "pointsAvailable"):
        metadata[name] = change(metadata[name])


def _escapes(action: dict[str, Any]) -> None:
    action["context"]["user"]["fullName"] = NAMES[4]


def _not_ascii(action: dict[str, Any]) -> None:
    action["context"]["user"]["fullName"] = NAMES[3]


def _offset(action: dict[str, Any]) -> None:
    when = action["when"]
    when["timestamp"] = when["timestamp"].replace("Z", "+02:00")


def _other_type(action: dict[str, Any]) -> None:
    action["type"] = OTHER_TYPES[0]


def _long_number(action: dict[str, Any]) -> None:
    action["metadata"]["orderNumber"] = 10**23


def _ids_of_digits(action: dict[str, Any]) -> None:
    metadata = action["metadata"]
    for holder, name in ((action, "_id"), (metadata, "awardId"), (metadata, "perkId")):
        holder[name] = str(int(holder[name], 16))


# The functions that change a simple action into each notation. The notation `spaces` changes the whole message instead.
NOTATIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "fractions": partial(_change_points, change=lambda points: points + 0.25),
    "numbers as text": partial(_change_points, change=str),
    "escapes": _escapes,
    "not ASCII": _not_ascii,
    "an offset": _offset,
    "another type": _other_type,
    "a long number": _long_number,
    "ids of digits": _ids_of_digits,
}
SPACES = "spaces"


def _in_notation(notation: str, *arguments: Any) -> Iterator[dict[str, Any]]:
    """Generate simple actions, and change each into one of `NOTATIONS`."""
    for action in simple_actions(*arguments):
        NOTATIONS[notation](action)
        yield action


ACTIONS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "mix": mixed_actions,
    "simple": simple_actions,
    SPACES: simple_actions,
    **{name: partial(_in_notation, name) for name in NOTATIONS},
}


def write_messages(path: Path, kind: str, count: int, first: int = 0, awards: int | None = None) -> Path:
    """Write actions as Singer messages into a file, and return its path."""
    with path.open("wb") as output:
        output.writelines(messages(kind, count, first, awards))
    return path


def messages(kind: str, count: int, first: int = 0, awards: int | None = None) -> Iterator[bytes]:
    """Generate the lines of a SCHEMA message, a RECORD per action, and a STATE after every `STATE_ROWS` records."""
    line = _spaced_line if kind == SPACES else _line
    yield _line({"type": "SCHEMA", "stream": "actions", "schema": SCHEMA, "key_properties": ["_id"]})
    extracted_at = "2026-11-25T07:00:00+00:00"
    timestamp = ""
    for place, action in enumerate(ACTIONS[kind](count, first, awards), start=1):
        timestamp = max(timestamp, action["when"]["timestamp"])
        record = {**action, "when_timestamp": action["when"]["timestamp"]}
        yield line({"type": "RECORD", "stream": "actions", "record": record, "time_extracted": extracted_at})
        if place % STATE_ROWS == 0:
            yield _state(timestamp)
    yield _state(timestamp)


def _state(timestamp: str) -> bytes:
    return _line({"type": "STATE", "value": {"bookmarks": {"actions": {"when_timestamp": timestamp}}}})


def _line(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def _spaced_line(message: dict[str, Any]) -> bytes:
    """A line with spaces after commas and colons, as `json.dumps` writes it."""
    return json.dumps(message).encode() + b"\n"


def _id(kind: str, number: int) -> str:
    """An id like Pepper's: 24 hexadecimal digits."""
    return hashlib.blake2b(f"{kind} {number}".encode(), digest_size=12).hexdigest()


if __name__ == "__main__":
    sys.stdout.buffer.writelines(messages(sys.argv[1], *map(int, sys.argv[2:])))
