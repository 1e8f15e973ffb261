"""The ledger's databases."""

from tests.gateway.ledger.conftest import (  # noqa: F401 (fixtures)
    database_url,
    engine,
    migrated_sqlite,
    postgres,
    settings,
    sqlite_url,
)
