"""The ledger's databases, of either kind."""

from tests.gateway.ledger.conftest import (  # noqa: F401
    database_url,
    migrated_sqlite,
    postgres,
    sqlite_url,
)
