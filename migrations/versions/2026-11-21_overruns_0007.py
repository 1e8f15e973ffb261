"""What requests cost beyond their reservations, by key and day.

Revision: 0007.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budget_overruns",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("day_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("key", "day_us", name=op.f("pk_budget_overruns")),
    )


def downgrade() -> None:
    op.drop_table("budget_overruns")
