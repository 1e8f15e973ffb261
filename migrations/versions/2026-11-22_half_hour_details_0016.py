"""Roll-ups by user and by tag by half hours, too, and by sets of these.

Revision: 0016. Days that are there have none, which `half_hours_from` notes: reports read their
rows for parts of them and for sets, or `headgate db check --rebuild` adds both.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_IDS = ("dimension_id", "value_id", "key_id")
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
_DAY_S, _DAY_US = 86_400, 86_400_000_000
_NAMES = ", ".join((*_IDS, *_SUMS))


def upgrade() -> None:
    span = sa.Column("span_s", sa.Integer(), autoincrement=False, nullable=False)
    _create(span, _id("bucket_us"))
    op.execute(
        f"INSERT INTO new_details (span_s, bucket_us, {_NAMES}) "
        f"SELECT {_DAY_S}, day_us, {_NAMES} FROM rollup_details"
    )
    _replace()
    op.execute(  # the first UTC day after all that is there
        f"INSERT INTO ledger_state (name, value) SELECT 'half_hours_from', max(bucket_us) + "
        f"{_DAY_US} FROM rollup_details HAVING max(bucket_us) IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DELETE FROM ledger_state WHERE name = 'half_hours_from'")
    _create(_id("day_us"))
    op.execute(
        f"INSERT INTO new_details (day_us, {_NAMES}) "
        f"SELECT bucket_us, {_NAMES} FROM rollup_details WHERE span_s = {_DAY_S}"
    )
    _replace()


def _id(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False)


def _create(*first: sa.Column[int]) -> None:
    names = (*(column.name for column in first), *_IDS)
    op.create_table(
        "new_details",
        *first,
        *map(_id, _IDS),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(*names, name=op.f("pk_new_details")),
        sqlite_with_rowid=False,
    )


def _replace() -> None:
    op.drop_table("rollup_details")
    op.rename_table("new_details", "rollup_details")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX pk_new_details RENAME TO pk_rollup_details")
