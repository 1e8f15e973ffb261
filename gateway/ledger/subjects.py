"""Who is behind a row: names of teams and users, kept apart from the ledger.

Rows of `requests` hold a random id in `team` and `user`. Deleting the id's name here makes the rows
nobody's, while sums, roll-ups and the audit chain stay as they are. A key's id is random already;
its name stands in `keys`.
"""

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from sqlalchemy import delete, select

from gateway.ledger.database import insert_once
from gateway.ledger.tables import subjects

if TYPE_CHECKING:
    from sqlalchemy import ScalarSelect
    from sqlalchemy.ext.asyncio import AsyncConnection

SubjectKind = Literal["team", "user"]
DELETED = "deleted:"
"""Begins what is shown for an id that has no name any more."""
SUBJECT_KINDS: tuple[SubjectKind, ...] = ("team", "user")
Subject = tuple[SubjectKind, str]
"""(kind, name)"""
_MOST_AT_ONCE = 10_000
"""SQLite takes at most 32,766 parameters."""


async def ids_of(connection: "AsyncConnection", wanted: Iterable[Subject]) -> dict[Subject, str]:
    """The ids of names, made if they are new; part of the caller's transaction."""
    names = sorted(set(wanted))
    found = await find_ids(connection, names)
    new = [subject for subject in names if subject not in found]
    if new:
        now_us = time.time_ns() // 1000
        rows = [
            {"id": uuid.uuid4().hex, "kind": kind, "name": name, "created_us": now_us}
            for kind, name in new
        ]
        await connection.execute(insert_once(connection.dialect.name, subjects), rows)
        found |= await find_ids(connection, new)
    return found


async def find_ids(connection: "AsyncConnection", names: Sequence[Subject]) -> dict[Subject, str]:
    """The ids of those names that have one."""
    found: dict[Subject, str] = {}
    for kind in SUBJECT_KINDS:
        of_kind = [name for k, name in names if k == kind]
        for start in range(0, len(of_kind), _MOST_AT_ONCE):
            rows = await connection.execute(
                select(subjects.c.name, subjects.c.id).where(
                    subjects.c.kind == kind,
                    subjects.c.name.in_(of_kind[start : start + _MOST_AT_ONCE]),
                )
            )
            found |= {(kind, name): subject_id for name, subject_id in rows}
    return found


async def names_of(connection: "AsyncConnection", ids: Iterable[str]) -> dict[str, str]:
    """The names behind ids; an id without one was deleted."""
    wanted = sorted(set(ids))
    found: dict[str, str] = {}
    for start in range(0, len(wanted), _MOST_AT_ONCE):
        rows = await connection.execute(
            select(subjects.c.id, subjects.c.name).where(
                subjects.c.id.in_(wanted[start : start + _MOST_AT_ONCE])
            )
        )
        found |= {row.id: row.name for row in rows}
    return found


def id_of(kind: SubjectKind, name: str) -> "ScalarSelect[str]":
    """The id of a name, inside another statement; NULL if nobody has it."""
    return (
        select(subjects.c.id)
        .where(subjects.c.kind == kind, subjects.c.name == name)
        .scalar_subquery()
    )


def shown(subject_id: str | None, names: Mapping[str, str]) -> str | None:
    """A row's `team` or `user` for people to read."""
    if subject_id is None:
        return None
    return names.get(subject_id) or f"{DELETED}{subject_id[:8]}"


async def forget(connection: "AsyncConnection", kind: SubjectKind, name: str) -> str | None:
    """Destroy a name's id for good; the id that nobody can tell any more, None if unknown."""
    found: str | None = (await connection.execute(select(id_of(kind, name)))).scalar()
    if found is not None:
        await connection.execute(delete(subjects).where(subjects.c.id == found))
    return found
