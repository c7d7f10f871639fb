"""Compression on a PostgreSQL server that is built with LZ4. The server in the wheel is built without LZ4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance import Unavailable
from tests.conformance.engines import DEBIANS_POSTGRESQL, postgresql
from tests.helpers.target import ACTIONS, action, execute, load, query

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.warehouse


@pytest.fixture
def url() -> Iterator[str]:
    """A new database on Debian's server, which is built with LZ4."""
    try:
        with postgresql(DEBIANS_POSTGRESQL) as new_url:
            yield new_url()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("chosen", [None, "pglz"])
def test_long_payloads_are_compressed_with_lz4_unless_another_method_is_chosen(url: str, chosen: str | None) -> None:
    if chosen:
        execute(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET default_toast_compression = {chosen}")

    load(url, [ACTIONS, action("long", note="flat white " * 1_000)])

    assert query(url, "SELECT pg_column_compression(payload) FROM actions") == [(chosen or "lz4",)]
