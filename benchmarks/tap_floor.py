"""The floor for tap-pepper: a minimal program that writes the same lines, without the tap's guarantees.

python -m benchmarks.tap_floor http://127.0.0.1:…  rows-per-page
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import requests


def main() -> None:
    """Read the pages of actions one after the other, and write each action as a message."""
    url, rows_per_page = sys.argv[1:]
    decode = msgspec.json.Decoder(float_hook=Decimal).decode
    encode = msgspec.json.Encoder(decimal_format="number").encode
    write = sys.stdout.buffer.write
    session = requests.Session()
    asked = {"limit": rows_per_page}
    while True:
        body = decode(session.get(f"{url}/actions", params=asked, timeout=60).content)
        extracted = datetime.now(UTC)
        for row in body["items"]:
            row["when_timestamp"] = row["when"]["timestamp"]
            write(encode({"type": "RECORD", "stream": "actions", "record": row, "time_extracted": extracted}))
            write(b"\n")
        if "nextKey" not in body["page"]:
            break
        asked["startKey"] = body["page"]["nextKey"]
    sys.stdout.flush()


if __name__ == "__main__":
    main()
