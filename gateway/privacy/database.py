"""The stores in the ledger's database.

Requests and charges stay: they are the books. What tells whose they are goes: the subject's name,
and of its requests the tags, reasons and attempts, which may hold anything a client sent. Sums,
roll-ups and the audit chain are the same before and after; what roll-ups hold by tag goes with the
tags.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Table, Text, cast, delete, or_, select, text, update

from gateway.ledger import check, state, subjects, tables
from gateway.ledger.database import writing
from gateway.ledger.direct import direct
from gateway.ledger.rollup_writer import RollupWriter, sweep
from gateway.ledger.rollups import Totals, add
from gateway.ledger.rows import REQUEST_COLUMNS
from gateway.privacy.model import Places, Subject, SubjectKind

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PAGE = 1_000
_OWNERS: dict[str, tuple[tuple[SubjectKind, str], ...]] = {
    "keys": (("key", "id"), ("team", "team"), ("user", "user")),
    "teams": (("team", "name"),),
    "users": (("user", "name"), ("team", "team")),
    "files": (("team", "team"), ("key", "key"), ("user", "user")),
    "batches": (("team", "team"), ("key", "key"), ("user", "user")),
}
"""Columns that name who a row belongs to, beside `scope`."""
_SECRET = ("sha256", "previous_sha256")
_LARGE = frozenset(
    ("requests", "charges", "chain", "rollups", "rollup_keys", "rollup_details", "machine_time")
)
_LOCK_WAIT = "5s"
_requests = tables.requests.c


async def find(engine: "AsyncEngine", kind: SubjectKind, name: str) -> Subject:
    """The subject and what goes with it; one that is unknown has no requests."""
    async with engine.connect() as connection:
        row_id: str | None = name
        if kind != "key":
            row_id = (await connection.execute(select(subjects.id_of(kind, name)))).scalar()
        ids: frozenset[str] = frozenset()
        if row_id is not None:
            found = await connection.execute(
                select(_requests.request_id).where(_requests[kind] == row_id)
            )
            ids = frozenset(found.scalars())
        also = await _belonging(connection, name, row_id) if kind == "team" else ()
    return Subject(kind=kind, name=name, row_id=row_id, request_ids=ids, also=also)


async def _belonging(
    connection: "AsyncConnection", team: str, row_id: str | None
) -> tuple[tuple[SubjectKind, str], ...]:
    """A team's keys, and the users whom no other team has."""
    keys, users = tables.keys.c, tables.users.c
    own = list((await connection.execute(select(keys.id).where(keys.team == team))).scalars())
    listed = select(users.name).where(users.team == team)
    members = set((await connection.execute(listed)).scalars())
    if row_id is not None:
        elsewhere = select(_requests.user).where(
            _requests.team != row_id, _requests.user.is_not(None)
        )
        here = select(_requests.user).where(
            _requests.team == row_id, _requests.user.not_in(elsewhere)
        )
        only = select(tables.subjects.c.name).where(tables.subjects.c.id.in_(here))
        members |= set((await connection.execute(only)).scalars())
    return (*(("key", one) for one in own), *(("user", one) for one in sorted(members)))


class LedgerRows:
    """Requests and their charges."""

    name = "requests and charges"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        exported: list[dict[str, Any]] = []
        async with places.engine.connect() as connection:
            for ids in _pages(subject.request_ids):
                booked: dict[str, list[dict[str, Any]]] = {}
                for row in await connection.execute(
                    select(tables.charges).where(tables.charges.c.request_id.in_(ids))
                ):
                    booked.setdefault(row.request_id, []).append(dict(row._mapping))
                columns = [_requests[name] for name in REQUEST_COLUMNS]
                found = await connection.execute(
                    select(*columns).where(_requests.request_id.in_(ids))
                )
                for row in found:
                    request = {**row._mapping, "charges": booked.get(row.request_id, [])}
                    exported.append({**request, subject.kind: subject.name})
        return exported

    async def delete(self, places: Places, subject: Subject) -> int:
        emptied = 0
        for ids in _pages(subject.request_ids):
            async with writing(places.engine) as connection:
                await state.hold_writers(connection)
                await _take_out_tags(connection, ids)
                done = await connection.execute(
                    update(tables.requests)
                    .where(_requests.request_id.in_(ids))
                    .values(tags={}, reasons=[], attempts=[])
                )
                emptied += done.rowcount
        async with writing(places.engine) as connection:
            await state.hold_writers(connection)
            await sweep(connection)
        return emptied


async def _take_out_tags(connection: "AsyncConnection", request_ids: Sequence[str]) -> None:
    """Of the roll-ups' details, what these requests are there under their tags."""
    totals = Totals()
    for one in await check.settlements(connection, request_ids):
        untagged = replace(one, request=replace(one.request, tags={}))
        add(totals, one, sign=-1)
        add(totals, untagged)
    await RollupWriter(connection.engine).write(await direct(connection), totals)


class Names:
    """Who is behind a random id."""

    name = "names of teams and users"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        found = []
        async with places.engine.connect() as connection:
            for kind, name in subject.everybody:
                if kind != "key":
                    row = (await connection.execute(select(subjects.id_of(kind, name)))).scalar()
                    found += [] if row is None else [{"kind": kind, "name": name, "id": row}]
        return found

    async def delete(self, places: Places, subject: Subject) -> int:
        gone = 0
        async with writing(places.engine) as connection:
            for kind, name in subject.everybody:
                if kind != "key":
                    gone += await subjects.forget(connection, kind, name) is not None
        return gone


class Rows:
    """Whole rows of other tables that name the subject."""

    def __init__(self, name: str, *described: Table) -> None:
        self.name = name
        self._tables = described

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        found = []
        async with places.engine.connect() as connection:
            for table in self._tables:
                rows = await connection.execute(select(table).where(_naming(table, subject)))
                found += [{"table": table.name, **_readable(row._mapping)} for row in rows]
        return found

    async def delete(self, places: Places, subject: Subject) -> int:
        gone = 0
        async with writing(places.engine) as connection:
            for table in self._tables:
                gone += (
                    await connection.execute(delete(table).where(_naming(table, subject)))
                ).rowcount
        return gone


class Feedback:
    """What callers said of answers."""

    name = "feedback"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        found = []
        async with places.engine.connect() as connection:
            for ids in _pages(subject.request_ids):
                rows = await connection.execute(
                    select(tables.feedback).where(tables.feedback.c.request_id.in_(ids))
                )
                found += [dict(row._mapping) for row in rows]
        return found

    async def delete(self, places: Places, subject: Subject) -> int:
        gone = 0
        async with writing(places.engine) as connection:
            for ids in _pages(subject.request_ids):
                done = await connection.execute(
                    delete(tables.feedback).where(tables.feedback.c.request_id.in_(ids))
                )
                gone += done.rowcount
        return gone


class Uploads:
    """Files that clients uploaded, batches, and what these answered."""

    name = "files and batches"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        found = []
        parts = tables.file_parts
        async with places.engine.connect() as connection:
            for table in (tables.batches, tables.files):
                rows = await connection.execute(select(table).where(_naming(table, subject)))
                found += [{"table": table.name, **row._mapping} for row in rows]
            for row in found:
                if row["table"] == "files":
                    bytes_ = await connection.execute(
                        select(parts.c.data)
                        .where(parts.c.file_id == row["id"])
                        .order_by(parts.c.seq)
                    )
                    row["content"] = b"".join(bytes_.scalars()).decode("utf-8", "replace")
        return found

    async def delete(self, places: Places, subject: Subject) -> int:
        files, parts, batches = tables.files, tables.file_parts, tables.batches
        async with writing(places.engine) as connection:
            theirs = select(files.c.id).where(_naming(files, subject))
            await connection.execute(delete(parts).where(parts.c.file_id.in_(theirs)))
            gone = 0
            for table in (files, batches):
                whose = delete(table).where(_naming(table, subject))
                gone += (await connection.execute(whose)).rowcount
        return gone


class Alerts:
    """What was found wrong, where it names the subject; with it goes what is not delivered yet."""

    name = "alerts"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        async with places.engine.connect() as connection:
            rows = await connection.execute(
                select(tables.alerts).where(_told_of(subject)).order_by(tables.alerts.c.opened_us)
            )
            return [dict(row._mapping) for row in rows]

    async def delete(self, places: Places, subject: Subject) -> int:
        alerts, deliveries = tables.alerts, tables.alert_deliveries
        async with writing(places.engine) as connection:
            theirs = select(alerts.c.id).where(_told_of(subject))
            await connection.execute(delete(deliveries).where(deliveries.c.alert_id.in_(theirs)))
            return (await connection.execute(delete(alerts).where(_told_of(subject)))).rowcount


class Acts:
    """The audit log: acts stay, whom they concerned goes."""

    name = "audit log"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        async with places.engine.connect() as connection:
            rows = await connection.execute(
                select(tables.audit_log).where(_concerning(subject)).order_by(tables.audit_log.c.id)
            )
            return [dict(row._mapping) for row in rows]

    async def delete(self, places: Places, subject: Subject) -> int:
        async with writing(places.engine) as connection:
            done = await connection.execute(
                update(tables.audit_log)
                .where(_concerning(subject))
                .values(target="deleted", team="", details={})
            )
            actors = await connection.execute(
                update(tables.audit_log)
                .where(tables.audit_log.c.actor.in_([name for _, name in subject.everybody]))
                .values(actor="deleted")
            )
        return done.rowcount + actors.rowcount


def _naming(table: Table, subject: Subject) -> ColumnElement[bool]:
    """Rows of a table that are the subject's by their scope, team, user or id."""
    c, conditions = table.c, []
    if "scope" in c:
        scopes = [f"{kind}:{name}" for kind, name in subject.everybody]
        conditions.append(c.scope.in_(scopes))
    for kind, column in _OWNERS.get(table.name, ()):
        conditions.append(c[column].in_(subject.names(kind)))
    return or_(*conditions)


def _told_of(subject: Subject) -> ColumnElement[bool]:
    c = tables.alerts.c
    texts = (c.key, c.title, c.text, cast(c.facts, Text))
    names = [name for _, name in subject.everybody]
    return or_(*(text.contains(name, autoescape=True) for text in texts for name in names))


def _concerning(subject: Subject) -> ColumnElement[bool]:
    c = tables.audit_log.c
    names = [name for _, name in subject.everybody]
    scopes = [f"{kind}:{name}" for kind, name in subject.everybody]
    details = cast(c.details, Text)
    quoted = [details.contains(f'"{name}"', autoescape=True) for name in (*names, *scopes)]
    return or_(
        c.target.in_([*names, *scopes]),
        c.team.in_(subject.names("team")),
        *(c.target.contains(scope, autoescape=True) for scope in scopes),
        *quoted,
    )


def _readable(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _SECRET}


def _pages(ids: frozenset[str]) -> list[Sequence[str]]:
    ordered = sorted(ids)
    return [ordered[start : start + _PAGE] for start in range(0, len(ordered), _PAGE)]


async def compact(engine: "AsyncEngine") -> None:
    """Write the database's files anew, so that what was deleted is in no free page either.

    PostgreSQL: the tables that hold names; the large ones are only vacuumed, as writing them anew
    would lock gateways out for long. Each waits its turn for `_LOCK_WAIT` at most: whoever comes
    behind it would wait, too.

    Args:
        engine: one that is patient.

    Raises:
        SQLAlchemyError: somebody reads a table for longer than that (a backup, say).
    """
    if engine.dialect.name == "sqlite":
        async with engine.connect() as connection:
            await connection.exec_driver_sql("VACUUM")
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.execute(text(f"SET lock_timeout = '{_LOCK_WAIT}'"))
        try:
            for table in sorted(tables.metadata.tables, key=lambda table: table in _LARGE):
                how = "ANALYZE" if table in _LARGE else "FULL, ANALYZE"
                await connection.execute(text(f'VACUUM ({how}) "{table}"'))
        finally:
            await connection.execute(text("RESET lock_timeout"))
