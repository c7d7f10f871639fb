"""No library's log shows the token."""

from __future__ import annotations

import logging
import sys

import pytest

from tap_pepper.redaction import Redactor, keep_out_of_logs
from tests.helpers.tap import Script, config, listing, run_tap

SECRET = "s/3cret&t0ken"


@pytest.fixture
def redactor() -> Redactor:
    redactor = Redactor()
    redactor.hide(SECRET)
    return redactor


def record(message: object, *args: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("urllib3", logging.DEBUG, "x.py", 1, message, args, exc_info)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "args", "shown"),
    [
        pytest.param(f"Token {SECRET}!", (), "Token ***!", id="in-the-message"),
        pytest.param("%s asked", (SECRET,), "*** asked", id="in-an-argument"),
        pytest.param("%r", ({"Authorization": f"Token {SECRET}"},), "{'Authorization': 'Token ***'}", id="in-headers"),
        pytest.param("/awards?t=s%%2F3cret%%26t0ken&%s", ("a",), "/awards?t=***&a", id="as-a-url-holds-it"),
        pytest.param("%s and %s", (SECRET,), "%s and %s ('***',)", id="where-the-arguments-do-not-fit"),
        pytest.param("nothing %d", (5,), "nothing 5", id="nothing-to-hide"),
    ],
)
def test_the_secret_is_replaced_wherever_a_record_shows_it(
    redactor: Redactor, message: str, args: tuple[object, ...], shown: str
) -> None:
    told = record(message, *args)
    assert redactor.filter(told)
    assert told.getMessage() == shown


def test_the_secret_is_replaced_in_a_trace(redactor: Redactor) -> None:
    try:
        raise ValueError(f"header Token {SECRET}")
    except ValueError:
        told = record("failed", exc_info=sys.exc_info())
    redactor.filter(told)
    shown = logging.Formatter().format(told)
    assert SECRET not in shown
    assert "ValueError: header Token ***" in shown


def test_a_run_hides_its_token_from_every_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Script(listing()) as script:
        run_tap(config(script.url, auth_token="another-t0ken"), "awards")
    logging.getLogger("urllib3.connectionpool").debug("header: %s", b"Authorization: Token another-t0ken")
    assert "Token ***" in caplog.text
    assert "another-t0ken" not in caplog.text


def test_secrets_are_hidden_in_all_records_however_often_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for secret in ("first-t0ken", "second-t0ken", "second-t0ken"):
        keep_out_of_logs(secret)
    logging.getLogger("any").warning("first-t0ken second-t0ken")
    assert "*** ***" in caplog.text


def test_the_secret_is_hidden_in_what_a_library_adds_to_a_record(caplog: pytest.LogCaptureFixture) -> None:
    keep_out_of_logs("third-t0ken")
    added = {"header": "Token third-t0ken", "headers": {"Authorization": ["third-t0ken"]}, "port": 443}
    logging.getLogger("any").warning("asked", extra=added, stack_info=True)
    (told,) = caplog.records
    assert "third-t0ken" not in str(vars(told))
    assert vars(told)["header"] == "Token ***"
    assert vars(told)["port"] == 443
