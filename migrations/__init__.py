"""The ledger's schema, step by step. `upgrade(database_url)` brings a database up to date."""


def upgrade(database_url: str, revision: str = "head") -> str:
    """Migrate up to `revision`; see `migrations.runner.upgrade`."""
    from migrations import runner  # Alembic takes a moment; importing this package does not

    return runner.upgrade(database_url, revision)
