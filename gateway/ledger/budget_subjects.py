"""Whether somebody is there whom a budget is about."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from sqlalchemy import select

from gateway.ledger.budget_store import check_scope
from gateway.ledger.tables import keys, teams

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_WITHOUT_ROW = ("anonymous", "admin")


async def missing_subject(
    connection: "AsyncConnection", scope: str, *, backends: Collection[str]
) -> str | None:
    """What a scope names that is not there; its budget limits nothing until it is.

    Users and tags are named by requests, so that any may come.

    Args:
        scope: of a budget.
        backends: names of those that are configured.

    Raises:
        ValueError: it is no scope.
    """
    kind, _, name = check_scope(scope).partition(":")
    there = True
    if kind == "team":
        found = await connection.execute(select(teams.c.name).where(teams.c.name == name))
        there = name in _WITHOUT_ROW or found.first() is not None
    elif kind == "key":
        found = await connection.execute(select(keys.c.id).where(keys.c.id == name))
        there = name in _WITHOUT_ROW or found.first() is not None
    elif kind == "model":
        there = name in backends
        kind = "backend"
    if there:
        return None
    return f"there is no {kind} {name!r}: this budget limits nothing until there is one"
