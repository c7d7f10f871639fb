"""A simple aggregate over the ledger. The benchmarks compare `verify` and `rebuild` with this program.

    python -m benchmarks.aggregate postgresql://…

It computes each award's sums, its number of actions, and the times of its first and its last action.
"""

from __future__ import annotations

import sys

from sqlalchemy import create_engine, text

# The outer query uses every column, because engines do not compute unused columns.
AGGREGATE = """
    SELECT count(*), sum(actions), sum(added), sum(redeemed), sum(refunded), min(first_at), max(last_at) FROM (
        SELECT award_id, count(*) AS actions, sum(points_added) AS added, sum(points_redeemed) AS redeemed,
            sum(points_refunded) AS refunded, min(occurred_at) AS first_at, max(occurred_at) AS last_at
        FROM actions WHERE effect IS NOT NULL GROUP BY award_id) AS awards"""


def main() -> None:
    """Print the result of the aggregate."""
    engine = create_engine(sys.argv[1].replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        print(connection.execute(text(AGGREGATE)).one())


if __name__ == "__main__":
    main()
