"""All stores, in the order in which they are deleted from, and what is done with all of them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gateway.ledger import tables
from gateway.ledger.database import open_engine
from gateway.privacy import database
from gateway.privacy.caches import CachedAnswers, LimitCounters
from gateway.privacy.files import Exports, Journals, Reservations
from gateway.privacy.model import Places, Store, SubjectKind
from gateway.processes.runtime import database_url
from gateway.settings import Settings

_BUDGETS = (tables.budgets, tables.budget_spend, tables.budget_alerts, tables.leases)
STORES: tuple[Store, ...] = (
    Journals(),
    Reservations(),
    CachedAnswers(),
    LimitCounters(),
    Exports(),
    database.LedgerRows(),
    database.Feedback(),
    database.Uploads(),
    database.Rows("budgets", *_BUDGETS),
    database.Alerts(),
    database.Acts(),
    database.Rows("keys", tables.keys),
    database.Rows("teams and users", tables.teams, tables.users),
    database.Names(),
)
"""Journals first: their rows are among the ledger's then. Keys, users and names last: by them all
the rest is found, also by a second attempt."""


@contextlib.asynccontextmanager
async def places(settings: Settings, redis_url: str | None) -> AsyncIterator[Places]:
    """Open the stores. A Redis that does not answer counts as not running."""
    import redis.asyncio as redis
    from redis.exceptions import RedisError

    engine = open_engine(database_url(settings))
    client = None
    try:
        if redis_url is not None:
            client = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=2)
            try:
                await client.ping()
            except (RedisError, OSError):
                await client.aclose()
                client = None
        yield Places(settings=settings, engine=engine, redis=client)
    finally:
        if client is not None:
            await client.aclose()
        await engine.dispose()


async def export(where: Places, kind: SubjectKind, name: str) -> dict[str, Any]:
    """Everything of a subject, by store."""
    subject = await database.find(where.engine, kind, name)
    return {
        "subject": {"kind": kind, "name": name, "also": [list(one) for one in subject.also]},
        "stores": {store.name: await store.export(where, subject) for store in STORES},
    }


async def delete(where: Places, kind: SubjectKind, name: str) -> dict[str, int]:
    """Remove a subject from every store; how much each had.

    Raises:
        DeletionError: something could not be removed; what was is gone all the same.
    """
    first, *others = STORES
    subject = await database.find(where.engine, kind, name)
    counts = {first.name: await first.delete(where, subject)}
    subject = await database.find(where.engine, kind, name)
    for store in others:
        counts[store.name] = await store.delete(where, subject)
    engine = open_engine(database_url(where.settings), patient=True)
    try:
        await database.compact(engine)
    finally:
        await engine.dispose()
    return counts
