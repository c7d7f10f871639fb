"""`pepper-sandbox serve` runs a simulated Pepper for manual use. The simulated time advances with the real time."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from pepper_runtime.wording import counted
from pepper_sandbox.api import APPLICATION_ID, TOKEN
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USERS_MAX = 100_000
DAYS_MAX = 3_660

GREETING = """\
Simulated Pepper listening on {url}
  {users}, {days} of history until {now:%Y-%m-%d %H:%M} UTC; time advances

  token          {token}
  merchant code  {application_id}

Configure the tap:
  export TAP_PEPPER_API_URL={url}
  export TAP_PEPPER_AUTH_TOKEN={token}
  export TAP_PEPPER_APPLICATION_ID={application_id}

Try the API:
  curl --compressed -H 'Authorization: Token {token}' -H 'x-application-id: {application_id}' \\
    -H 'x-api-version: 10' '{url}/awards?limit=3'
  curl '{url}/_sandbox/balances'                        true points of each award
  curl -X POST '{url}/_sandbox/advance?seconds=3600'    advance time by an hour
  curl -X POST '{url}/_sandbox/token?value=new-token'   replace the token; the old one is revoked

Press Ctrl-C to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `pepper-sandbox`. Return the exit code: 0, or 1 if the port is not available."""
    options = _parser().parse_args(arguments)
    now = datetime.now(UTC)
    world = World(seed=options.seed, users=options.users, days=options.days, now=now)
    sandbox = Sandbox(
        world, port=options.port, token=options.token, application_id=options.merchant, clock=time.monotonic
    )
    try:
        with sandbox:
            for stop in (signal.SIGINT, signal.SIGTERM):
                signal.signal(stop, signal.default_int_handler)
            greeting = GREETING.format(
                url=sandbox.url,
                token=sandbox.token,
                application_id=sandbox.application_id,
                users=counted(options.users, "user"),
                days=counted(int(options.days) if options.days.is_integer() else options.days, "day"),
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
    parser = _Parser(prog="pepper-sandbox", description="A simulated Pepper with a loyalty programme.")
    serve = parser.add_subparsers(metavar="serve", required=True).add_parser(
        "serve", help="serve the Pepper API on a loopback port", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    serve.add_argument(
        "--port", type=_number(int, 0, 65_535), default=8765, help="port to listen on; 0 selects a free port"
    )
    serve.add_argument("--seed", type=int, default=7, help="seed of the history; the same seed gives the same history")
    serve.add_argument("--users", type=_number(int, 1, USERS_MAX), default=500, help="number of users")
    serve.add_argument("--merchant", default=APPLICATION_ID, help="merchant code; the only one that the API knows")
    serve.add_argument("--token", default=TOKEN, help="token of the merchant; the only one that the API accepts")
    serve.add_argument("--days", type=_number(float, 0, DAYS_MAX), default=60.0, help="length of the history")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the error on one line."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _number(kind: type[int] | type[float], minimum: int, maximum: int) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if minimum <= number <= maximum:
                return number
        noun = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} from {minimum:,} to {maximum:,}")

    return parse


if __name__ == "__main__":
    sys.exit(main())
