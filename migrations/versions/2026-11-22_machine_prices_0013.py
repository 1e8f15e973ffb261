"""What machines were configured to cost, from when on.

Revision: 0013.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "machine_prices",
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("configured", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("machine", "since_us", name=op.f("pk_machine_prices")),
    )


def downgrade() -> None:
    op.drop_table("machine_prices")
