"""Random ids for teams and users, roll-ups, the audit chain, adjustments and closed months.

Revision: 0003. Rows that are there get their ids; they are in no roll-up, which `rollups_from`
notes: reports read them one by one, or `headgate db check --rebuild` adds them.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_GROUPS = ("team", "key", "model", "policy", "rule", "task")
_WORK = ("backend", "machine", "machine_type", "kind")
_SUMS = ("requests", "errors", "cache_hits_exact", "cache_hits_semantic")
_TOKENS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
_MONEY = ("saved_nano_usd", "cost_nano_usd", "machine_ns")


def upgrade() -> None:
    op.create_table(
        "subjects",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subjects")),
        sa.UniqueConstraint("kind", "name", name=op.f("uq_subjects_kind_name")),
    )
    op.create_table(
        "rollup_keys",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("fact", sa.String(length=8), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in _GROUPS),
        *(sa.Column(name, sa.Text(), nullable=True) for name in _WORK),
        sa.Column("charged", sa.Boolean(), nullable=False),
        sa.Column("firsts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollup_keys")),
    )
    op.create_table(
        "rollups",
        sa.Column("span_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bucket_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("key_id", sa.BigInteger(), autoincrement=False, nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in (*_SUMS, *_TOKENS, *_MONEY)
        ),
        sa.PrimaryKeyConstraint("span_s", "bucket_us", "key_id", name=op.f("pk_rollups")),
    )
    op.create_table(
        "ledger_state",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ledger_state")),
    )
    op.create_table(
        "chain",
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_chain")),
    )
    op.create_table(
        "adjustments",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("payee", sa.Text(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("posted_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjustments")),
    )
    op.create_index(op.f("ix_adjustments_month"), "adjustments", ["month"])
    op.create_table(
        "closings",
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("closed_us", sa.BigInteger(), nullable=False),
        sa.Column("bill", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("month", name=op.f("pk_closings")),
    )
    for kind in ("team", "user"):
        _name_subjects(kind)
    op.execute(  # the first quarter of an hour after all that is there
        sa.text(
            "INSERT INTO ledger_state (name, value) SELECT 'rollups_from', "
            "(greatest_us / 900000000 + 1) * 900000000 FROM (SELECT CASE WHEN r > c THEN r ELSE c "
            "END AS greatest_us FROM (SELECT coalesce((SELECT max(started_us) FROM requests), 0) "
            "AS r, coalesce((SELECT max(at_us) FROM charges), 0) AS c) AS each_max) AS both_max "
            "WHERE greatest_us > 0"
        )
    )


def _name_subjects(kind: str) -> None:
    """Put a random id in place of every name."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    drawn = "lower(hex(randomblob(16)))" if sqlite else "replace(gen_random_uuid()::text, '-', '')"
    op.execute(
        f"INSERT INTO subjects (id, kind, name, created_us) SELECT {drawn}, '{kind}', name, 0 "
        f'FROM (SELECT DISTINCT "{kind}" AS name FROM requests WHERE "{kind}" IS NOT NULL) AS named'
    )
    op.execute(
        f"UPDATE requests SET \"{kind}\" = (SELECT id FROM subjects WHERE kind = '{kind}' "
        f'AND name = requests."{kind}") WHERE "{kind}" IS NOT NULL'
    )


def downgrade() -> None:
    for kind in ("team", "user"):  # who was deleted stays an id
        op.execute(
            f'UPDATE requests SET "{kind}" = (SELECT name FROM subjects WHERE '
            f'subjects.id = requests."{kind}") WHERE EXISTS (SELECT 1 FROM subjects WHERE '
            f'subjects.id = requests."{kind}")'
        )
    op.drop_table("closings")
    op.drop_index(op.f("ix_adjustments_month"), "adjustments")
    op.drop_table("adjustments")
    op.drop_table("chain")
    op.drop_table("ledger_state")
    op.drop_table("rollups")
    op.drop_table("rollup_keys")
    op.drop_table("subjects")
