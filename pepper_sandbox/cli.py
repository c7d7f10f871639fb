"""`pepper-sandbox serve`: a local Pepper for people, whose time passes as theirs does."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USERS_MAX = 100_000
DAYS_MAX = 3_660

GREETING = """\
A local Pepper listens on {url}
  {users:,} users, {days:g} days of history up to {now:%Y-%m-%d %H:%M} UTC, and time passes

  token          {token}
  merchant code  {application_id}

Point the tap at it:
  export TAP_PEPPER_API_URL={url}
  export TAP_PEPPER_AUTH_TOKEN={token}
  export TAP_PEPPER_APPLICATION_ID={application_id}

Look around:
  curl --compressed -H 'Authorization: Token {token}' -H 'x-application-id: {application_id}' \\
    -H 'x-api-version: 10' '{url}/awards?limit=3'
  curl '{url}/_sandbox/balances'                        each award's true points
  curl -X POST '{url}/_sandbox/advance?seconds=3600'    let an hour pass

Ctrl-C ends it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Gives the exit code: 0, or 1 where the port cannot be had."""
    options = _parser().parse_args(arguments)
    now = datetime.now(UTC)
    world = World(seed=options.seed, users=options.users, days=options.days, now=now)
    sandbox = Sandbox(world, port=options.port, clock=time.monotonic)
    try:
        with sandbox:
            for stop in (signal.SIGINT, signal.SIGTERM):
                signal.signal(stop, signal.default_int_handler)
            greeting = GREETING.format(
                url=sandbox.url,
                token=sandbox.token,
                application_id=sandbox.application_id,
                users=options.users,
                days=options.days,
                now=now,
            )
            print(greeting, flush=True)
            threading.Event().wait()
    except OSError as error:
        print(f"pepper-sandbox: port {options.port}: {error.strerror}; choose another --port", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pepper-sandbox", description="A local Pepper with a loyalty world in it.")
    serve = parser.add_subparsers(metavar="serve", required=True).add_parser(
        "serve", help="serve the Pepper API on a loopback port", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    serve.add_argument("--port", type=_within(int, 0, 65_535), default=8765, help="0 takes a free one")
    serve.add_argument("--seed", type=int, default=7, help="the same seed makes the same history")
    serve.add_argument("--users", type=_within(int, 1, USERS_MAX), default=500, help="how many hold awards")
    serve.add_argument("--days", type=_within(float, 0, DAYS_MAX), default=60.0, help="how long the history is")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _within(kind: type[int] | type[float], least: int, most: int) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if least <= number <= most:
                return number
        noun = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} from {least:,} to {most:,}")

    return parse


if __name__ == "__main__":
    sys.exit(main())
