"""No log record of any library shows the token."""

from __future__ import annotations

import logging
import sys

import pytest

from tap_pepper.redaction import Redactor, redact_in_logs
from tests.helpers.tap import Script, config, listing, run_tap

SECRET = "s/3cret&t0ken"


@pytest.fixture
def redactor() -> Redactor:
    redactor = Redactor()
    redactor.add(SECRET)
    return redactor


def record(message: object, *args: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("urllib3", logging.DEBUG, "x.py", 1, message, args, exc_info)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "args", "expected"),
    [
        pytest.param(f"Token {SECRET}!", (), "Token ***!", id="in-the-message"),
        pytest.param("%s asked", (SECRET,), "*** asked", id="in-an-argument"),
        pytest.param("%r", ({"Authorization": f"Token {SECRET}"},), "{'Authorization': 'Token ***'}", id="in-headers"),
        pytest.param("/awards?t=s%%2F3cret%%26t0ken&%s", ("a",), "/awards?t=***&a", id="url-encoded"),
        pytest.param("%s and %s", (SECRET,), "%s and %s ('***',)", id="arguments-do-not-match"),
        pytest.param("nothing %d", (5,), "nothing 5", id="nothing-to-redact"),
    ],
)
def test_a_secret_is_redacted_anywhere_in_a_record(
    redactor: Redactor, message: str, args: tuple[object, ...], expected: str
) -> None:
    log_record = record(message, *args)
    assert redactor.filter(log_record)
    assert log_record.getMessage() == expected


def test_a_secret_that_contains_another_is_redacted_whole(redactor: Redactor) -> None:
    for secret in ("t0ken-of-a-merchant", "t0ken"):
        redactor.add(secret)
    log_record = record("Token t0ken-of-a-merchant")
    redactor.filter(log_record)
    assert log_record.getMessage() == "Token ***"


def test_a_secret_is_redacted_in_a_traceback(redactor: Redactor) -> None:
    try:
        raise ValueError(f"header Token {SECRET}")
    except ValueError:
        log_record = record("failed", exc_info=sys.exc_info())
    redactor.filter(log_record)
    formatted = logging.Formatter().format(log_record)
    assert SECRET not in formatted
    assert "ValueError: header Token ***" in formatted


def test_the_token_of_a_run_is_redacted_in_every_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Script(listing()) as script:
        run_tap(config(script.url, auth_token="another-t0ken"), "awards")
    # Other tests may have set the level of this logger.
    caplog.set_level(logging.DEBUG, logger="urllib3.connectionpool")
    logging.getLogger("urllib3.connectionpool").debug("header: %s", b"Authorization: Token another-t0ken")
    assert "Token ***" in caplog.text
    assert "another-t0ken" not in caplog.text


def test_several_secrets_are_redacted_even_if_added_twice(caplog: pytest.LogCaptureFixture) -> None:
    for secret in ("first-t0ken", "second-t0ken", "second-t0ken"):
        redact_in_logs(secret)
    logging.getLogger("any").warning("first-t0ken second-t0ken")
    assert "*** ***" in caplog.text


def test_a_secret_is_redacted_in_extra_fields_of_a_record(caplog: pytest.LogCaptureFixture) -> None:
    redact_in_logs("third-t0ken")
    added = {"header": "Token third-t0ken", "headers": {"Authorization": ["third-t0ken"]}, "port": 443}
    logging.getLogger("any").warning("asked", extra=added, stack_info=True)
    (log_record,) = caplog.records
    assert "third-t0ken" not in str(vars(log_record))
    assert vars(log_record)["header"] == "Token ***"
    assert vars(log_record)["port"] == 443
