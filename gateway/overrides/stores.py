"""Where overrides are kept: a table, and a hash in Redis. Either alone is enough."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from gateway.cache.model import StoreUnavailable
from gateway.ledger.audit import Act, record
from gateway.ledger.database import writing
from gateway.ledger.tables import overrides
from gateway.overrides.model import Override

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

AWAY = (SQLAlchemyError, StoreUnavailable, OSError, TimeoutError)
"""What a store raises that does not answer."""
_HASH = b"headgate:overrides"
_COLUMNS = tuple(column.name for column in overrides.columns)
_WRITE = b"""
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and cjson.decode(old).version >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Override).decode


class OverrideStore(Protocol):
    """Keeps the newest version of each slot."""

    name: str

    async def read(self) -> list[Override]:
        """All slots. Raises one of AWAY."""

    async def write(self, changes: Iterable[Override]) -> None:
        """Take over what is newer than what is there. Raises one of AWAY."""


class SqlOverrides:
    """In the database, where every act that arrives also leaves a row in the audit log."""

    name = "database"

    def __init__(self, engine: "AsyncEngine") -> None:
        self._engine = engine

    async def read(self) -> list[Override]:
        async with self._engine.connect() as connection:
            rows = (await connection.execute(select(overrides))).all()
        return [Override(**row._mapping) for row in rows]

    async def write(self, changes: Iterable[Override]) -> None:
        from sqlalchemy.dialects import postgresql, sqlite

        postgres = self._engine.dialect.name == "postgresql"
        insert = postgresql.insert if postgres else sqlite.insert
        async with writing(self._engine) as connection:
            for one in changes:
                known = select(overrides.c.version).where(overrides.c.slot == one.slot)
                before = (await connection.execute(known)).scalar_one_or_none() or 0
                fresh = insert(overrides).values(**{n: getattr(one, n) for n in _COLUMNS})
                newer = fresh.on_conflict_do_update(
                    index_elements=["slot"],
                    set_={n: fresh.excluded[n] for n in _COLUMNS if n != "slot"},
                    where=overrides.c.version < fresh.excluded.version,
                )
                if (await connection.execute(newer)).rowcount == 1:
                    for act in (*(o for o in one.replaces if o.version > before), one):
                        await record(connection, act_of(act))


class RedisOverrides:
    """In the Redis that the caches use.

    Args:
        command: sends one command.
    """

    name = "redis"

    def __init__(self, command: Callable[..., Awaitable[Any]]) -> None:
        self._command = command

    async def read(self) -> list[Override]:
        return [_decode(text) for text in await self._command(b"HVALS", _HASH)]

    async def write(self, changes: Iterable[Override]) -> None:
        for one in changes:
            slot, version = one.slot.encode(), b"%d" % one.version
            await self._command(b"EVAL", _WRITE, b"1", _HASH, slot, version, _encode(one))


def act_of(override: Override) -> Act:
    """For the audit log: written by whoever brings the override to the database first."""
    value = override.value
    if isinstance(value, dict):  # a policy: its text is in the table already
        value = {name: part for name, part in value.items() if name != "text"}
    details = {"value": value, "until": override.until, "why": override.why}
    return Act(
        actor=override.actor,
        action="overrides.lift" if override.value is None else "overrides.set",
        target=override.slot,
        address=override.address,
        details=details,
        at=override.version / 1e6,
    )
