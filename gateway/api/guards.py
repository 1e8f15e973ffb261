"""Scopes for the paths that Litestar handles."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gateway.api.auth import require, require_endpoint
from gateway.ledger.keys import Caller, Scope
from gateway.pipeline import Pipeline

Connection = ASGIConnection[Any, Any, Any, Any]


def guard(
    pipeline: Pipeline, scope: Scope | None = None
) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """A Litestar guard: callers with `scope` (None: any) get in and stand in the state.

    A key that is restricted to endpoints may still list its models.
    """

    async def check(connection: Connection, _handler: BaseRouteHandler) -> None:
        caller = await pipeline.gate.caller(connection.headers, connection.scope.get("client"))
        if scope is not None:
            require(caller, scope)
        if scope == "inference" and caller.only.endpoints is not None:
            endpoint = connection.scope["path"].removeprefix("/").removeprefix("v1/")
            first = endpoint.partition("/")[0]
            if first not in ("models", "requests"):
                require_endpoint(caller, first if first in ("files", "batches") else endpoint)
        connection.state.caller = caller

    return check


def caller_of(connection: Connection) -> Caller:
    """The caller that `guard` let in."""
    caller: Caller = connection.state.caller
    return caller
