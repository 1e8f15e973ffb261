"""Users, restricted and limited keys, the audit log; budgets' time zones, thresholds and alerts.

Revision: 0002.
"""

# ruff: noqa: N999 (a date comes first, so that the folder lists them in order)
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COUNTED = ("budget_spend", "budgets", "leases")
"""Tables with a window."""


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("team", sa.String(length=128), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("limits", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("removed_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_users")),
    )
    op.create_index(op.f("ix_users_team"), "users", ["team"])
    op.create_table(
        "audit_log",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), server_default="", nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.Text(), server_default="", nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("address", sa.Text(), server_default="", nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_at_us"), "audit_log", ["at_us"])
    op.create_table(
        "budget_alerts",
        sa.Column("scope", sa.String(length=160), nullable=False),
        sa.Column("window", sa.String(length=32), nullable=False),
        sa.Column("window_start_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("percent", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("spent_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("limit_nano_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "scope", "window", "window_start_us", "percent", name=op.f("pk_budget_alerts")
        ),
    )
    with op.batch_alter_table("teams") as teams:
        teams.add_column(sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
        teams.add_column(sa.Column("limits", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("keys") as keys:
        keys.add_column(sa.Column("user", sa.String(length=128), nullable=True))
        keys.add_column(sa.Column("role", sa.String(length=16), nullable=True))
        keys.add_column(sa.Column("only", sa.JSON(none_as_null=True), nullable=True))
        keys.add_column(sa.Column("limits", sa.JSON(none_as_null=True), nullable=True))
    op.create_index(op.f("ix_keys_user"), "keys", ["user"])
    with op.batch_alter_table("budgets") as budgets:
        budgets.add_column(
            sa.Column("tz", sa.String(length=64), server_default="UTC", nullable=False)
        )
        budgets.add_column(sa.Column("alert_percents", sa.JSON(none_as_null=True), nullable=True))
        budgets.add_column(sa.Column("downgrade_percent", sa.Integer(), nullable=True))
        budgets.add_column(sa.Column("downgrade_policy", sa.String(length=128), nullable=True))
    with op.batch_alter_table("leases") as leases:
        leases.add_column(
            sa.Column("held_nano_usd", sa.BigInteger(), server_default="0", nullable=False)
        )
        leases.add_column(sa.Column("ended_us", sa.BigInteger(), nullable=True))
    _widen_windows(8, 32)
    _rename_window("total", "lifetime")


def downgrade() -> None:
    for name in _COUNTED:  # windows that the older schema cannot hold
        op.execute(sa.text(f'DELETE FROM {name} WHERE length("window") > 8'))
    _rename_window("lifetime", "total")
    _widen_windows(32, 8)
    with op.batch_alter_table("leases") as leases:
        leases.drop_column("ended_us")
        leases.drop_column("held_nano_usd")
    with op.batch_alter_table("budgets") as budgets:
        for name in ("downgrade_policy", "downgrade_percent", "alert_percents", "tz"):
            budgets.drop_column(name)
    op.drop_index(op.f("ix_keys_user"), "keys")
    with op.batch_alter_table("keys") as keys:
        for name in ("limits", "only", "role", "user"):
            keys.drop_column(name)
    with op.batch_alter_table("teams") as teams:
        teams.drop_column("limits")
        teams.drop_column("weight")
    op.drop_table("budget_alerts")
    op.drop_index(op.f("ix_audit_log_at_us"), "audit_log")
    op.drop_table("audit_log")
    op.drop_index(op.f("ix_users_team"), "users")
    op.drop_table("users")


def _widen_windows(old: int, new: int) -> None:
    for name in _COUNTED:
        with op.batch_alter_table(name) as table:
            table.alter_column(
                "window",
                existing_type=sa.String(length=old),
                type_=sa.String(length=new),
                existing_nullable=False,
            )


def _rename_window(old: str, new: str) -> None:
    for name in _COUNTED:
        op.execute(
            sa.text(f'UPDATE {name} SET "window" = :new WHERE "window" = :old').bindparams(
                new=new, old=old
            )
        )
