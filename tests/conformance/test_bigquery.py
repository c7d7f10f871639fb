"""Errors from BigQuery's client library, which are not driver errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from target_crm.errors import SettingError, WarehouseError
from target_crm.warehouse.connection import Warehouse
from tests.conformance import Unavailable
from tests.conformance.bigquery import bigquery

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def url() -> Iterator[str]:
    try:
        with bigquery() as new_url:
            yield new_url()
    except Unavailable as reason:
        pytest.skip(f"BigQuery: {reason}")


@pytest.mark.warehouse
def test_a_load_job_into_a_missing_table_gives_a_one_line_error(url: str) -> None:
    crm = Warehouse(url)
    told = r"^bigquery://project/crm_0: NotFound: 404 .*_crm_commits$"
    with pytest.raises(WarehouseError, match=told), crm.write() as connection:
        crm.adapter.load(connection, crm.tables.commits, [("b", datetime.now(UTC))])


def test_missing_credentials_give_a_one_line_error() -> None:
    pytest.importorskip("sqlalchemy_bigquery")
    with pytest.raises(SettingError, match=r"^no credentials for BigQuery: .*'/no/such.json'$"):
        Warehouse("bigquery://project/crm?credentials_path=/no/such.json")
