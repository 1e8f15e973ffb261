"""Adjustments of a closed month post to the open one and name the month that they correct.

Revision: 0004.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("adjustments") as adjustments:
        adjustments.add_column(sa.Column("corrects", sa.String(length=7), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("adjustments") as adjustments:
        adjustments.drop_column("corrects")
