"""Scopes for the paths that Litestar handles."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gateway.api.auth import require
from gateway.ledger.keys import Caller, Scope
from gateway.pipeline import Pipeline

Connection = ASGIConnection[Any, Any, Any, Any]


def guard(
    pipeline: Pipeline, scope: Scope | None = None
) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """A Litestar guard: callers with `scope` (None: any) get in and stand in the state."""

    async def check(connection: Connection, _handler: BaseRouteHandler) -> None:
        caller = await pipeline.gate.caller(connection.headers)
        if scope is not None:
            require(caller, scope)
        connection.state.caller = caller

    return check


def caller_of(connection: Connection) -> Caller:
    """The caller that `guard` let in."""
    caller: Caller = connection.state.caller
    return caller
