"""Acts of administration: allowed by a role, done in one transaction, written to the audit log."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.api.database import database_refusal
from gateway.api.guards import caller_of
from gateway.errors import Forbidden, GatewayError, InvalidRequest, NotFound
from gateway.ledger import audit
from gateway.ledger.access import Permission
from gateway.ledger.audit import ActOutcome
from gateway.ledger.keys import Caller
from gateway.ledger.stamp import touch
from gateway.pipeline import Pipeline

log = structlog.get_logger(__name__)

Connection = ASGIConnection[Any, Any, Any, Any]
_BY = "x-headgate-by"
"""Who uses the key, as our commands say it."""


class Act:
    """What is being done; the handler fills in what only it knows."""

    def __init__(
        self, caller: Caller, action: str, target: str, address: str, by: str = ""
    ) -> None:
        self.caller = caller
        self.by = by
        self.action = action
        self.target = target
        self.address = address
        self.details: dict[str, Any] = {}

    def row(self, outcome: ActOutcome) -> audit.Act:
        """For the audit log."""
        return audit.Act(
            actor=actor(self.caller, self.by),
            team=self.caller.team,
            action=self.action,
            target=self.target,
            outcome=outcome,
            address=self.address,
            details=self.details,
        )

    def require(self, permission: Permission, *, team: str | None = None) -> None:
        """Raises Forbidden if the caller's role does not allow it (for that team)."""
        if not self.caller.can(permission, team=team):
            about = f" for team {team!r}" if team is not None and self.caller.role == "team" else ""
            raise Forbidden(
                f"This key may not do that{about}: it needs the scope 'admin' with a role that "
                f"has {permission!r}."
            )


def actor(caller: Caller, by: str) -> str:
    """The key, and who says to use it."""
    return f"{caller.key_id} ({by[:64]})" if by else caller.key_id


def admin_guard(
    pipeline: Pipeline, permission: Permission
) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """A Litestar guard for /admin: who lacks the permission gets 403 and a row in the audit log."""

    async def check(connection: Connection, _handler: BaseRouteHandler) -> None:
        caller = await pipeline.gate.caller(connection.headers, connection.scope.get("client"))
        connection.state.caller = caller
        # what role `team` may do depends on the team; the act itself asks again
        await admit(pipeline, connection, caller, permission, team=caller.team)

    return check


async def admit(
    pipeline: Pipeline,
    connection: Connection,
    caller: Caller,
    permission: Permission,
    *,
    team: str | None = None,
) -> None:
    """Let a caller through who has the permission; another's try gets a row in the audit log.

    Raises:
        Forbidden: his role does not allow it (for that team).
    """
    act = _attempt(pipeline, connection, caller)
    try:
        act.require(permission, team=team)
    except Forbidden as error:
        act.details = {"why": error.message}
        await _write_apart(pipeline, act, "refused")
        raise


async def note_refusal(
    pipeline: Pipeline, connection: Connection, caller: Caller, why: str
) -> None:
    """Write down that a caller tried what his key's scopes do not allow."""
    act = _attempt(pipeline, connection, caller)
    act.details = {"why": why}
    await _write_apart(pipeline, act, "refused")


def _attempt(pipeline: Pipeline, connection: Connection, caller: Caller) -> Act:
    what = f"{connection.scope.get('method', '')} {connection.scope['path']}"[:64]
    address = pipeline.gate.address(connection.headers, connection.scope.get("client"))
    return Act(caller, what, "", address, connection.headers.get(_BY, ""))


@asynccontextmanager
async def reading(pipeline: Pipeline) -> AsyncIterator[AsyncConnection]:
    """A transaction; the ledger's own errors become refusals."""
    try:
        async with pipeline.parts.engine.begin() as connection:
            yield connection
    except (LookupError, ValueError, SQLAlchemyError, OSError) as error:
        raise _refusal(error) from None


@asynccontextmanager
async def acting(
    pipeline: Pipeline, request: Request[Any, Any, Any], action: str, target: str = ""
) -> AsyncIterator[tuple[Act, AsyncConnection]]:
    """A transaction that ends with the act's row; what is refused or fails has a row of its own.

    Raises:
        NotFound, InvalidRequest, Unavailable, Forbidden: nothing was changed.
    """
    address = pipeline.gate.address(request.headers, request.scope.get("client"))
    act = Act(caller_of(request), action, target, address, request.headers.get(_BY, ""))
    try:
        async with pipeline.parts.engine.begin() as connection:
            yield act, connection
            await audit.record(connection, act.row("done"))
    except (LookupError, ValueError, SQLAlchemyError, OSError, GatewayError) as error:
        refusal = error if isinstance(error, GatewayError) else _refusal(error)
        act.details = {**act.details, "why": refusal.message}
        refused = isinstance(refusal, Forbidden)
        await _write_apart(pipeline, act, "refused" if refused else "failed")
        raise refusal from None
    touch(Path(pipeline.parts.settings.state_dir))


async def _write_apart(pipeline: Pipeline, act: Act, outcome: ActOutcome) -> None:
    log.warning("admin_act_not_done", actor=act.caller.key_id, action=act.action, outcome=outcome)
    try:
        async with pipeline.parts.engine.begin() as connection:
            await audit.record(connection, act.row(outcome))
    except (SQLAlchemyError, OSError) as error:
        log.error("audit_row_lost", action=act.action, error=str(error)[:300])


def _refusal(error: Exception) -> GatewayError:
    if isinstance(error, LookupError):
        return NotFound(str(error.args[0]) if error.args else str(error))
    if isinstance(error, ValueError):
        return InvalidRequest(str(error))
    return database_refusal(error)
