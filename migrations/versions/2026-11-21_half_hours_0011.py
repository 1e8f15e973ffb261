"""Roll-ups of hours that begin at half past, for zones like India's.

Revision: 0011. They are added up from the quarters that are there.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SPAN_S = -3_600
_HOUR_US, _HALF_US = 3_600_000_000, 1_800_000_000
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


def upgrade() -> None:
    bucket = f"(bucket_us - {_HALF_US}) / {_HOUR_US} * {_HOUR_US} + {_HALF_US}"
    sums = ", ".join(f"SUM({name})" for name in _SUMS)
    op.execute(
        f"INSERT INTO rollups (span_s, bucket_us, key_id, {', '.join(_SUMS)}) "
        f"SELECT {_SPAN_S}, {bucket}, key_id, {sums} FROM rollups "
        f"WHERE span_s = 900 GROUP BY {bucket}, key_id"
    )


def downgrade() -> None:
    op.execute(f"DELETE FROM rollups WHERE span_s = {_SPAN_S}")
