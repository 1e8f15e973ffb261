"""/admin/*: keys, teams, budgets, policies, backends and caches, for keys with the scope `admin`.

Thin: every rule stands in the ledger, the policy book and the caches.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.api.bodies import read_body
from gateway.api.guards import guard
from gateway.api.health import describe
from gateway.cache.model import StoreUnavailable
from gateway.errors import InvalidRequest, NotFound, Unavailable
from gateway.ledger import keys as key_store
from gateway.ledger.budget_store import (
    DEFAULT_ALERT_PERCENTS,
    Budget,
    UnknownBudget,
    counter_of,
    list_budgets,
    read_spend,
    remove_budget,
    set_budget,
)
from gateway.ledger.keys import UnknownKey
from gateway.ledger.money import parse_usd, usd_text
from gateway.pipeline import Pipeline


class NewKey(Struct, kw_only=True, forbid_unknown_fields=True):
    team: str
    name: str = ""
    scopes: list[str] = msgspec.field(default_factory=lambda: list(key_store.DEFAULT_SCOPES))
    expires_in_s: float | None = None


class Rotation(Struct, kw_only=True, forbid_unknown_fields=True):
    overlap_s: float = 0.0


class NewTeam(Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class NewBudget(Struct, kw_only=True, forbid_unknown_fields=True):
    scope: str
    limit_usd: str | float
    window: str = "day"
    soft: bool = False
    tz: str = "UTC"
    alert_percents: list[int] = msgspec.field(default_factory=lambda: list(DEFAULT_ALERT_PERCENTS))
    downgrade_percent: int | None = None
    downgrade_policy: str | None = None


def admin_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """All of /admin."""
    return [
        *_key_routes(pipeline),
        *_team_and_budget_routes(pipeline),
        *_operator_routes(pipeline),
    ]


@asynccontextmanager
async def _transaction(pipeline: Pipeline) -> AsyncIterator[AsyncConnection]:
    """A transaction; the ledger's own errors become refusals."""
    try:
        async with pipeline.parts.engine.begin() as connection:
            yield connection
    except (UnknownKey, UnknownBudget) as error:
        raise NotFound(str(error)) from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    except SQLAlchemyError as error:
        raise Unavailable(f"The database does not answer: {str(error)[:200]}.") from None


def _parameter(request: Request[Any, Any, Any], name: str) -> str:
    """A query parameter that must be there."""
    value: str | None = request.query_params.get(name)
    if not value:
        raise InvalidRequest(f"The query parameter {name!r} is missing.", param=name)
    return value


def _key_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    guards = [guard(pipeline, "admin")]

    @get("/admin/keys", guards=guards, summary="All keys; never a secret")
    async def list_keys(request: Request[Any, Any, Any]) -> dict[str, Any]:
        async with _transaction(pipeline) as connection:
            found = await key_store.list_keys(connection, team=request.query_params.get("team"))
        return {"keys": msgspec.to_builtins(found)}

    @post("/admin/keys", guards=guards, summary="Make a key; its secret is shown once")
    async def create_key(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, NewKey)
        now = time.time()
        async with _transaction(pipeline) as connection:
            key, secret = await key_store.create_key(
                connection,
                team=body.team,
                name=body.name,
                scopes=body.scopes,
                expires_at=None if body.expires_in_s is None else now + body.expires_in_s,
                now=now,
            )
        return {"id": key.id, "key": secret, "team": key.team, "scopes": list(key.scopes)}

    @delete("/admin/keys/{key_id:str}", guards=guards, status_code=200, summary="Revoke a key")
    async def revoke_key(request: Request[Any, Any, Any]) -> dict[str, Any]:
        key_id = request.path_params["key_id"]
        async with _transaction(pipeline) as connection:
            key = await key_store.revoke_key(connection, key_id, now=time.time())
        shown: dict[str, Any] = msgspec.to_builtins(key)
        return shown

    @post("/admin/keys/{key_id:str}/rotate", guards=guards, summary="Give a key a new secret")
    async def rotate_key(request: Request[Any, Any, Any]) -> dict[str, Any]:
        key_id = request.path_params["key_id"]
        body = await read_body(request, Rotation)
        async with _transaction(pipeline) as connection:
            key, secret = await key_store.rotate_key(
                connection, key_id, overlap_s=body.overlap_s, now=time.time()
            )
        return {"id": key.id, "key": secret}

    return [list_keys, create_key, revoke_key, rotate_key]


def _team_and_budget_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    guards = [guard(pipeline, "admin")]

    @get("/admin/teams", guards=guards, summary="All teams")
    async def list_teams() -> dict[str, Any]:
        async with _transaction(pipeline) as connection:
            return {"teams": await key_store.list_teams(connection)}

    @post("/admin/teams", guards=guards, summary="Make a team")
    async def create_team(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, NewTeam)
        async with _transaction(pipeline) as connection:
            new = await key_store.create_team(connection, body.name, now=time.time())
        return {"name": body.name, "created": new}

    @get("/admin/budgets", guards=guards, summary="All budgets and what is left of them")
    async def budgets() -> dict[str, Any]:
        return {"budgets": await _budgets(pipeline)}

    @post("/admin/budgets", guards=guards, summary="Make or change a budget")
    async def change_budget(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, NewBudget)
        async with _transaction(pipeline) as connection:
            budget = await set_budget(
                connection,
                Budget(
                    scope=body.scope,
                    window=body.window,
                    limit_nano_usd=parse_usd(str(body.limit_usd)),
                    soft=body.soft,
                    tz=body.tz,
                    alert_percents=tuple(body.alert_percents),
                    downgrade_percent=body.downgrade_percent,
                    downgrade_policy=body.downgrade_policy,
                ),
                now=pipeline.parts.clock(),
            )
        await pipeline.parts.budgets.refresh()
        limit = usd_text(budget.limit_nano_usd)
        return {"scope": budget.scope, "window": budget.window, "limit_usd": limit}

    @delete("/admin/budgets", guards=guards, status_code=200, summary="Remove a budget")
    async def delete_budget(request: Request[Any, Any, Any]) -> dict[str, Any]:
        scope = _parameter(request, "scope")
        window = request.query_params.get("window", "day")
        async with _transaction(pipeline) as connection:
            await remove_budget(connection, scope=scope, window=window)
        await pipeline.parts.budgets.refresh()
        return {"scope": scope, "window": window, "removed": True}

    return [list_teams, create_team, budgets, change_budget, delete_budget]


async def _budgets(pipeline: Pipeline) -> list[dict[str, Any]]:
    async with _transaction(pipeline) as connection:
        found = await list_budgets(connection)
        counters = [counter_of(budget, pipeline.parts.clock()) for budget in found]
        spend = await read_spend(connection, counters) if counters else {}
    shown = []
    for budget, counter in zip(found, counters, strict=True):
        used = spend.get(counter)
        taken = used.taken if used else 0
        shown.append(
            {
                "scope": budget.scope,
                "window": budget.window,
                "soft": budget.soft,
                "limit_usd": usd_text(budget.limit_nano_usd),
                "spent_usd": usd_text(used.spent + used.overrun if used else 0),
                "reserved_usd": usd_text(used.reserved if used else 0),
                "left_usd": usd_text(max(budget.limit_nano_usd - taken, 0)),
            }
        )
    return shown


def _operator_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    guards = [guard(pipeline, "admin")]
    parts = pipeline.parts

    @get("/admin/policies", guards=guards, summary="All policies, and the one in use")
    async def policies() -> dict[str, Any]:
        active = parts.book.get()
        return {
            "active": {"name": active.name, "ref": active.ref, "path": active.path},
            "policies": parts.book.names(),
            "problems": parts.book.problems(),
        }

    @get("/admin/backends", guards=guards, summary="Backends and their condition")
    async def backends() -> dict[str, Any]:
        return {"backends": (await describe(pipeline))["backends"]}

    @get("/admin/cache", guards=guards, summary="The caches' condition")
    async def cache() -> dict[str, Any]:
        return await parts.caches.state() if parts.caches is not None else {}

    @delete("/admin/cache", guards=guards, status_code=200, summary="Forget a team's answers")
    async def clear_cache(request: Request[Any, Any, Any]) -> dict[str, Any]:
        namespace = _parameter(request, "namespace")
        try:
            removed = await parts.caches.clear(namespace) if parts.caches is not None else 0
        except StoreUnavailable:
            raise Unavailable("The cache's store does not answer.") from None
        return {"namespace": namespace, "removed": removed}

    return [policies, backends, cache, clear_cache]
