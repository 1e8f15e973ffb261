"""Who administrated what, and who tried: one row per act, never a secret."""

import getpass
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from sqlalchemy import insert, or_, select

from gateway.ledger.database import now_us
from gateway.ledger.tables import audit_log

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

ActOutcome = Literal["done", "refused", "failed"]
_MAX_TEXT = 512


class Act(Struct, frozen=True, kw_only=True):
    """A row of the audit log."""

    actor: str
    """A key's id, cli: and the operating system's user, or both: key_… (cli:USER)."""
    team: str = ""
    """Of the actor."""
    action: str
    """Such as keys.create."""
    target: str = ""
    outcome: ActOutcome = "done"
    address: str = ""
    """Of the client."""
    details: dict[str, Any] = {}
    at: float = 0.0
    """Unix seconds by the database's clock; to be recorded: 0 for now, else when it was done."""


def command_line_actor() -> str:
    """Who runs a command on this machine."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


async def record(connection: "AsyncConnection", act: Act) -> None:
    """Append an act, in the transaction that does it (a refused one: in its own)."""
    await connection.execute(
        insert(audit_log).values(
            at_us=round(act.at * 1e6) if act.at else now_us(connection.dialect.name),
            actor=act.actor[:_MAX_TEXT],
            team=act.team[:_MAX_TEXT],
            action=act.action[:64],
            target=act.target[:_MAX_TEXT].replace("\x00", "\ufffd"),
            outcome=act.outcome,
            address=act.address[:_MAX_TEXT],
            details=act.details,
        )
    )


async def list_acts(
    connection: "AsyncConnection",
    *,
    since: float | None = None,
    action: str | None = None,
    actor: str | None = None,
    limit: int = 100,
) -> list[Act]:
    """The newest acts first.

    Args:
        actor: a key's id or cli:USER; acts of both together are either's.
    """
    query = select(audit_log).order_by(audit_log.c.at_us.desc(), audit_log.c.id.desc())
    if since is not None:
        query = query.where(audit_log.c.at_us >= round(since * 1e6))
    if action is not None:
        query = query.where(audit_log.c.action == action)
    if actor is not None:
        used, using = f"{actor} (", f" ({actor})"
        query = query.where(
            or_(
                audit_log.c.actor == actor,
                audit_log.c.actor.startswith(used, autoescape=True),
                audit_log.c.actor.endswith(using, autoescape=True),
            )
        )
    return [
        Act(
            actor=row.actor,
            team=row.team,
            action=row.action,
            target=row.target,
            outcome=row.outcome,
            address=row.address,
            details=row.details,
            at=row.at_us / 1e6,
        )
        for row in await connection.execute(query.limit(limit))
    ]
