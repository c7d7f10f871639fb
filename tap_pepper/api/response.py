"""Turn a response body into a page of rows.

A list endpoint answers with a page:

    {"items": [{"_id": "5f…", …}, …], "page": {"count": 100, "limit": 100, "nextKey": "eyJfaWQi…"}}

The rows are listed under `items` or under the name of the resource, or the body itself is the list. More pages follow
only if there is a `nextKey`, which is opaque. Even an empty page may have a `nextKey`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import msgspec

from tap_pepper.errors import FatalAPIError, RetriableAPIError
from tap_pepper.raw_json import JsonText, Row, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import requests

COMPRESSED_BYTES_MAX: Final = 64 * 1024 * 1024
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
CHUNK_BYTES: Final = 64 * 1024
YEARS: Final = range(2000, 9999)
"""A date outside these years comes from a clock that was never set, so the tap ignores the date."""

_KINDS: Final = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}

_body_decoder = msgspec.json.Decoder(Row | list[JsonText] | str | float | bool | None)
_rows_decoder = msgspec.json.Decoder(list[Row])


@dataclass(frozen=True)
class Page:
    """One response of a list endpoint.

    Attributes:
        rows: The rows; their fields are JSON text without line breaks.
        next_key: The `startKey` of the next page; None on the last page.
        date: The response's `Date`, in whole seconds; None if it is missing or invalid.
        count: The number of rows on the page, according to the page; None if the page does not say.
    """

    rows: list[Row]
    next_key: str | None
    date: datetime | None
    count: int | None = None


def read_body(response: requests.Response, bytes_max: int, where: str, timed_out: Callable[[], bool]) -> bytes:
    """Read and decompress a response body.

    Raises:
        FatalAPIError: The body is larger than `bytes_max`, or than `COMPRESSED_BYTES_MAX` before decompression.
        RetriableAPIError: `timed_out` returned True before the body was complete.
    """
    # read1 returns what has arrived without waiting for a full chunk, so a slow body cannot outlast the deadline.
    read = getattr(response.raw, "read1", response.raw.read)
    chunks = []
    size_bytes = 0
    while chunk := read(CHUNK_BYTES, decode_content=True):
        size_bytes += len(chunk)
        if size_bytes > bytes_max or response.raw.tell() > COMPRESSED_BYTES_MAX:
            limit_bytes = bytes_max if size_bytes > bytes_max else COMPRESSED_BYTES_MAX
            msg = f"{where}: the response is larger than {limit_bytes:,} bytes; lower page_size"
            raise FatalAPIError(msg)
        if timed_out():
            raise RetriableAPIError("the response took too long", advice="lower page_size, or try later")
        chunks.append(chunk)
    return b"".join(chunks)


def parse_page(body: bytes, date: datetime | None, *, resource: str, where: str) -> Page:
    """Parse the body of a successful response.

    Args:
        body: The decompressed body.
        date: The response's `Date`.
        resource: The name of the field that may contain the rows, such as `actions`.
        where: Names the request in error messages, such as `actions page 7`.

    Raises:
        RetriableAPIError: The body is incomplete, or it is not JSON.
        FatalAPIError: The body has no list of rows, or is otherwise not a page.
    """
    try:
        fields = decode_fields(body)
    except (ValueError, RecursionError) as error:
        problem = "Pepper answered 200 with an incomplete body or a body that is not JSON"
        raise RetriableAPIError(problem, advice="check that api_url is Pepper's API, or try later") from error
    about = from_json(fields.get("page")) or {}
    if not isinstance(about, dict):
        msg = f"{where}: page is {_kind(about)}, expected an object"
        raise FatalAPIError(msg)
    count = about.get("count")
    next_key = _choose_next_key(about.get("nextKey"), from_json(fields.get("nextKey")), where)
    return Page(_find_rows(fields, resource, where), next_key, date, count if type(count) is int else None)


def decode_fields(body: bytes) -> Row:
    """Check that a body is JSON, and decode only its top-level fields.

    Returns:
        The fields of an object. A list becomes the field `items`; any other value has no fields.

    Raises:
        ValueError: The body is incomplete, or it is not JSON.
        RecursionError: The body is nested too deeply.
    """
    try:
        if not body.isascii():
            # msgspec does not check whether the text that it skips is UTF-8, so check all of it here.
            body.decode()
        has_line_breaks = b"\n" in body or b"\r" in body
        fields = _body_decoder.decode(msgspec.json.format(body, indent=-1) if has_line_breaks else body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A name cut in the middle of an emoji contains a lone surrogate, which JSON allows and msgspec rejects. NaN and
        # Infinity become text, so that they count as invalid points and not as null.
        decoded = json.loads(body, parse_float=Decimal, parse_constant=str)
        fields = _body_decoder.decode(to_json(_replace_surrogates(decoded)))
    if isinstance(fields, list):
        return {"items": to_json(fields)}
    return fields if isinstance(fields, dict) else {}


def parse_http_date(text: str | None) -> datetime | None:
    """Parse an HTTP date. Return None if it is missing or invalid, or if its year is not in `YEARS`."""
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.year not in YEARS:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _replace_surrogates(value: object) -> object:
    """Replace lone surrogates with U+FFFD, because no encoder accepts them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {str(_replace_surrogates(key)): _replace_surrogates(item) for key, item in value.items()}
    return value


def _find_rows(fields: Row, resource: str, where: str) -> list[Row]:
    """Find the list of rows. A missing list is an error; otherwise it would look like an empty page.

    If there are two lists, one of them must be empty, or both must be the same.
    """
    texts = (fields.get(name) for name in ("items", resource))
    lists = [text for text in texts if text is not None and bytes(text).startswith(b"[")]
    if not lists:
        msg = (
            f"{where}: Pepper answered 200 without a list under 'items' or '{resource}'; check api_url and api_version"
        )
        raise FatalAPIError(msg)
    rows, *others = sorted((_decode_rows(text, where) for text in lists), key=len, reverse=True)
    if any(other and other != rows for other in others):
        msg = f"{where}: the rows under 'items' and '{resource}' differ"
        raise FatalAPIError(msg)
    return rows


def _decode_rows(text: JsonText, where: str) -> list[Row]:
    try:
        return _rows_decoder.decode(text)
    except msgspec.ValidationError as error:
        row = next(row for row in from_json(text) if not isinstance(row, dict))
        msg = f"{where}: a row is {_kind(row)}, expected an object"
        raise FatalAPIError(msg) from error


def _choose_next_key(in_page: object, at_top: object, where: str) -> str | None:
    """Return the key of the next page, which may be in `page` or at the top level; None on the last page."""
    key = at_top if in_page in (None, False, "") else in_page
    if key in (None, False, ""):
        return None
    if not isinstance(key, (str, int)) or key is True:
        msg = f"{where}: page.nextKey is {_kind(key)}, expected text"
        raise FatalAPIError(msg)
    return str(key)


def _kind(value: object) -> str:
    """Return the type of a JSON value in words, for an error message."""
    return _KINDS.get(type(value), "a number")
