"""A REST tap for Pepper's actions, as a developer would write it from the SDK's template.

python -m benchmarks.tap_stock --config config.json
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from singer_sdk import RESTStream, Tap
from singer_sdk import typing as th

if TYPE_CHECKING:
    from collections.abc import Mapping


class StockActions(RESTStream[str]):
    """The stream of actions. It copies the replication key to the top level, because the SDK requires that."""

    name = "actions"
    path = "/actions"
    primary_keys = ("_id",)
    replication_key = "when_timestamp"
    records_jsonpath = "$.items[*]"
    next_page_token_jsonpath = "$.page.nextKey"  # noqa: S105 - not a password
    schema = json.loads((files("tap_pepper") / "schemas" / "actions.json").read_text())

    @property
    def url_base(self) -> str:
        """Pepper's address."""
        return str(self.config["api_url"])

    def get_url_params(self, context: Mapping[str, Any] | None, next_page_token: str | None) -> dict[str, Any]:  # noqa: ARG002
        """Return the query: the configured page size, and where the next page starts."""
        start = {} if next_page_token is None else {"startKey": next_page_token}
        return {"limit": self.config["page_size"], **start}

    def post_process(self, row: dict[str, Any], context: Mapping[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Copy the time to the top level, where the SDK expects the replication key."""
        return {**row, "when_timestamp": row["when"]["timestamp"]}


class StockTap(Tap):
    """A tap that keeps the SDK's default behaviour."""

    name = "tap-stock"
    config_jsonschema = th.PropertiesList(
        th.Property("api_url", th.StringType, required=True), th.Property("page_size", th.IntegerType, default=100)
    ).to_dict()

    def discover_streams(self) -> list[StockActions]:
        """Return the only stream, the actions."""
        return [StockActions(self)]


if __name__ == "__main__":
    StockTap.cli()
