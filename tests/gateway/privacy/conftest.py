"""The ledger's databases serve these tests too."""

from tests.gateway.ledger.conftest import (
    database_url,
    engine,
    migrated_sqlite,
    postgres,
    settings,
)

__all__ = ["database_url", "engine", "migrated_sqlite", "postgres", "settings"]
