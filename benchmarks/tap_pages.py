"""A server that is never the bottleneck: it runs in a separate process, and prepares its pages before it serves.

    python -m benchmarks.tap_pages --actions 1000000 --rows-per-page 100

The server prints its address, and serves until it is stopped. Page n contains the actions of the n-th minute after
`START`. After `DIFFERENT_ROWS` actions, their content repeats with new ids, times and awards.
"""

from __future__ import annotations

import argparse
import re
import socketserver
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import cycle, islice
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from pepper_sandbox.world import World

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
SETTLE_SECONDS: Final = 5
DIFFERENT_ROWS: Final = 10_000
"""The number of actions with different content. After these actions, the content repeats."""
NOTHING: Final = b'{"items":[],"page":{}}'

_PLACEHOLDERS: Final = re.compile(rb"(@page@|@round@|@minute@)")


class Pages:
    """Pages with the same number of actions. The server makes each page from a JSON template and the page's number.

    Args:
        actions: The total number of actions, rounded up to a full page.
        rows_per_page: The number of actions per page.
    """

    def __init__(self, actions: int, rows_per_page: int) -> None:
        self.count = -(-actions // rows_per_page)
        world = World(users=DIFFERENT_ROWS // 100, now=START)
        rows = cycle(world.actions())
        self._templates = [
            _PLACEHOLDERS.split(_template(list(islice(rows, rows_per_page))))
            for _ in range(min(self.count, -(-DIFFERENT_ROWS // rows_per_page)))
        ]

    @property
    def end(self) -> datetime:
        """The end of the last page's minute."""
        return START + timedelta(minutes=self.count)

    def body(self, number: int, last: int) -> bytes:
        """Return the body of a page, with a nextKey unless it is the last page."""
        repeats, which = divmod(number, len(self._templates))
        fill = {
            b"@page@": b"%08x" % number,
            b"@round@": b"%08x" % repeats,
            b"@minute@": f"{START + timedelta(minutes=number):%Y-%m-%dT%H:%M}".encode(),
        }
        rows = b"".join([fill.get(part, part) for part in self._templates[which]])
        page = b'{"nextKey":"%d"}' % (number + 1) if number < last else b"{}"
        return b'{"items":%s,"page":%s}' % (rows, page)

    def answer(self, target: str) -> bytes:
        """Return the body of the response to a request for this path and query."""
        parts = urlsplit(target)
        asked = dict(parse_qsl(parts.query))
        if parts.path != "/actions" or asked.get("limit") == "1":
            return NOTHING
        first, last = (
            _minute(asked.get("when.timestamp.gt"), 0),
            _minute(asked.get("when.timestamp.lte"), self.count) - 1,
        )
        number = int(asked.get("startKey", max(first, 0)))
        return self.body(number, min(last, self.count - 1)) if number <= last else NOTHING


def _template(rows: list[dict[str, Any]]) -> bytes:
    """Return a page's rows as a JSON template, with times spread over the page's minute."""
    for index, row in enumerate(rows):
        after_ms = 1 + index * 59_000 // len(rows)
        row["_id"] = f"@page@{index:016x}"
        row["when"] = {**row["when"], "timestamp": f"@minute@:{after_ms // 1000:02}.{after_ms % 1000:03}Z"}
        if award_id := (row["metadata"] or {}).get("awardId"):
            row["metadata"] = {**row["metadata"], "awardId": f"@round@{award_id[8:]}"}
    return msgspec.json.Encoder(decimal_format="number").encode(rows)


def _minute(bound: str | None, otherwise: int) -> int:
    """Return the number of the minute that starts at a bound, or `otherwise` if the request has no such bound."""
    if bound is None:
        return otherwise
    return int((datetime.fromisoformat(bound) - START).total_seconds() // 60)


class Server(socketserver.ThreadingTCPServer):
    """An HTTP/1.1 server on a free loopback port, with one thread per connection."""

    daemon_threads = True

    def __init__(self, pages: Pages) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.pages = pages
        self.date = format_datetime(pages.end + timedelta(seconds=SETTLE_SECONDS), usegmt=True).encode()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        while request := self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            body = self.server.pages.answer(request.split()[1].decode())
            head = b"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self.wfile.write(head % (self.server.date, len(body)) + body)


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tap_pages", description=__doc__)
    parser.add_argument("--actions", type=int, default=100_000)
    parser.add_argument("--rows-per-page", type=int, default=100)
    asked = parser.parse_args()
    with Server(Pages(asked.actions, asked.rows_per_page)) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
