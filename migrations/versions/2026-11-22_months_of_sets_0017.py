"""Roll-ups by sets of user and tags by UTC month, too.

Revision: 0017. Those of months that are there are added up from their days.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_IDS = "dimension_id, value_id, key_id"
_SUMS = (
    "requests",
    "errors",
    "cache_hits_exact",
    "cache_hits_semantic",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "saved_nano_usd",
    "cost_nano_usd",
    "machine_ns",
)
_DAY_S, _MONTH_S = 86_400, 31 * 86_400
_SET_ID = int.from_bytes(sha256(b"set").digest()[:8]) >> 1
_OF_DAYS = f"FROM rollup_details WHERE span_s = {_DAY_S} AND dimension_id = {_SET_ID}"


def upgrade() -> None:
    found = op.get_bind().execute(sa.text(f"SELECT DISTINCT bucket_us {_OF_DAYS}"))
    days = (datetime.fromtimestamp(at_us // 1_000_000, UTC) for (at_us,) in found.all())
    for begin in sorted({day.replace(day=1) for day in days}):
        end = (begin + timedelta(days=31)).replace(day=1)
        begin_us, end_us = (round(at.timestamp()) * 1_000_000 for at in (begin, end))
        sums = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in _SUMS)
        op.execute(
            f"INSERT INTO rollup_details (span_s, bucket_us, {_IDS}, {', '.join(_SUMS)}) "
            f"SELECT {_MONTH_S}, {begin_us}, {_IDS}, {sums} {_OF_DAYS} "
            f"AND bucket_us >= {begin_us} AND bucket_us < {end_us} GROUP BY {_IDS}"
        )


def downgrade() -> None:
    op.execute(f"DELETE FROM rollup_details WHERE span_s = {_MONTH_S}")
