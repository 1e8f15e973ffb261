"""Whether somebody is there whom a budget is about."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from gateway.ledger.budget_store import check_scope
from gateway.ledger.key_store import RESERVED, UnknownKey, get_key, is_there
from gateway.ledger.tables import teams

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


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
        there = name in RESERVED or await is_there(connection, teams, name)
    elif kind == "key":
        there = name in RESERVED or await _has_key(connection, name)
    elif kind == "model":
        there = name in backends
        kind = "backend"
    if there:
        return None
    return f"there is no {kind} {name!r}: this budget limits nothing until there is one"


async def _has_key(connection: "AsyncConnection", key_id: str) -> bool:
    try:
        await get_key(connection, key_id)
    except UnknownKey:
        return False
    return True
