"""Files in the database: a row, and its bytes in parts."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from sqlalchemy import Select, delete, func, insert, or_, select, update

from gateway.ledger.database import writing
from gateway.ledger.keys import Caller
from gateway.ledger.tables import batches, file_parts, files

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

Purpose = Literal["batch", "batch_output"]
Order = Literal["asc", "desc"]
_PART_BYTES = 4 << 20


class Page(Struct, frozen=True, kw_only=True):
    """Which rows of a list are wanted."""

    limit: int
    after: str | None = None
    """The id of the last row of the page before."""
    order: Order = "desc"
    purpose: str | None = None


class FileStore:
    """Callers see their team's files only.

    Args:
        keep_s: after that a file goes.
        clock: Unix seconds.
    """

    def __init__(
        self,
        engine: "AsyncEngine",
        *,
        keep_s: float,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._keep_us = round(keep_s * 1e6)
        self._clock = clock
        self._new_id = new_id

    async def upload(
        self, caller: Caller, data: bytes, *, filename: str, expires_s: float | None = None
    ) -> dict[str, Any]:
        """Keep the input of a batch; the file object."""
        async with writing(self._engine) as connection:
            file_id = await self.create(
                connection,
                team=caller.team,
                key=caller.key_id,
                user=caller.user,
                purpose="batch",
                filename=filename,
                expires_s=expires_s,
            )
            await append(connection, file_id, data)
        found = await self.find(caller, file_id)
        assert found is not None
        return found

    async def create(
        self,
        connection: "AsyncConnection",
        *,
        team: str,
        key: str,
        user: str | None,
        purpose: Purpose,
        filename: str,
        expires_s: float | None = None,
    ) -> str:
        """An empty file; its id."""
        now_us = round(self._clock() * 1e6)
        keep_us = self._keep_us if expires_s is None else round(expires_s * 1e6)
        file_id = f"file-{self._new_id()}"
        await connection.execute(
            insert(files).values(
                id=file_id,
                team=team,
                key=key,
                user=user,
                purpose=purpose,
                filename=filename,
                created_us=now_us,
                expires_us=now_us + min(keep_us, self._keep_us),
            )
        )
        return file_id

    async def find(self, caller: Caller, file_id: str) -> dict[str, Any] | None:
        """The file object, if it is there and the caller's team's."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(self._own(caller, file_id))).first()
        return None if row is None else _shown(row._mapping)

    async def listed(self, caller: Caller, page: Page) -> list[dict[str, Any]]:
        """One page, and one more row where there is another page."""
        query = select(files).where(files.c.team == caller.team)
        if page.purpose is not None:
            query = query.where(files.c.purpose == page.purpose)
        async with self._engine.connect() as connection:
            rows = await connection.execute(paged(query, files, page))
        return [_shown(row._mapping) for row in rows]

    async def delete(self, caller: Caller, file_id: str) -> bool:
        """Remove it; False if there is none."""
        async with writing(self._engine) as connection:
            if (await connection.execute(self._own(caller, file_id))).first() is None:
                return False
            await _remove(connection, select(files.c.id).where(files.c.id == file_id))
        return True

    async def content(self, file_id: str) -> AsyncIterator[bytes]:
        """Its bytes, part by part; nothing is held open in between."""
        seq = 0
        while True:
            query = select(file_parts.c.seq, file_parts.c.data).where(
                file_parts.c.file_id == file_id, file_parts.c.seq >= seq
            )
            async with self._engine.connect() as connection:
                part = (await connection.execute(query.order_by(file_parts.c.seq).limit(1))).first()
            if part is None:
                return
            yield part.data
            seq = part.seq + 1

    async def forget_expired(self) -> None:
        """Remove files and batches whose time has come."""
        now_us = round(self._clock() * 1e6)
        old = select(files.c.id).where(files.c.expires_us < now_us)
        over = select(batches.c.id).where(batches.c.expires_us < now_us)
        async with self._engine.connect() as connection:
            found = [(await connection.execute(query.limit(1))).first() for query in (old, over)]
        if any(found):
            async with writing(self._engine) as connection:
                await _remove(connection, old)
                await connection.execute(delete(batches).where(batches.c.expires_us < now_us))

    def _own(self, caller: Caller, file_id: str) -> Select[Any]:
        return select(files).where(files.c.id == file_id, files.c.team == caller.team)


def paged(query: Select[Any], table: "Table", page: Page) -> Select[Any]:
    """The rows of a page by creation, and one more."""
    c = table.c
    if page.after is not None:
        begins = select(c.created_us).where(c.id == page.after).scalar_subquery()
        later = c.created_us > begins if page.order == "asc" else c.created_us < begins
        beside = c.id > page.after if page.order == "asc" else c.id < page.after
        query = query.where(or_(later, (c.created_us == begins) & beside))
    keys = (c.created_us, c.id)
    ordered = keys if page.order == "asc" else tuple(key.desc() for key in keys)
    return query.order_by(*ordered).limit(page.limit + 1)


async def append(connection: "AsyncConnection", file_id: str, data: bytes) -> None:
    """Write on at a file's end."""
    last = select(func.max(file_parts.c.seq)).where(file_parts.c.file_id == file_id)
    found = (await connection.execute(last)).scalar()
    first = 0 if found is None else found + 1
    parts = [data[at : at + _PART_BYTES] for at in range(0, len(data), _PART_BYTES)]
    if parts:
        rows = [
            {"file_id": file_id, "seq": first + place, "data": part}
            for place, part in enumerate(parts)
        ]
        await connection.execute(insert(file_parts), rows)
    await connection.execute(
        update(files).where(files.c.id == file_id).values(bytes=files.c.bytes + len(data))
    )


async def _remove(connection: "AsyncConnection", which: Select[Any]) -> None:
    await connection.execute(delete(file_parts).where(file_parts.c.file_id.in_(which)))
    await connection.execute(delete(files).where(files.c.id.in_(which)))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """As OpenAI shows a file."""
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": row["created_us"] // 1_000_000,
        "expires_at": row["expires_us"] // 1_000_000,
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }
