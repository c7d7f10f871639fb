"""Load Singer messages with dlt: python peer_dlt.py URL FOLDER append|merge < messages."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import dlt

if TYPE_CHECKING:
    from collections.abc import Iterator


def records() -> Iterator[dict[str, Any]]:
    """Yield the records of the messages."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if message["type"] == "RECORD":
            yield message["record"]


def main(url: str, folder: str, disposition: Any) -> None:
    """Load the records into one table. By default dlt would create child tables for lists, which takes longer."""
    destination = dlt.destinations.postgres(url)
    pipeline = dlt.pipeline("bench", pipelines_dir=folder, destination=destination, dataset_name="bench")
    resource = dlt.resource(
        records, name="actions", primary_key="_id", write_disposition=disposition, max_table_nesting=0
    )
    pipeline.run(resource)


if __name__ == "__main__":
    main(*sys.argv[1:])
