"""/admin/*: keys, teams, users, budgets, the audit log, overrides, policies, backends and
caches.

For keys with the scope `admin`, as far as their role goes. Thin: every rule stands in the ledger,
the policy book and the caches.
"""

from typing import Any

import msgspec
from litestar import Request, delete, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.acts import acting, admin_guard, reading
from gateway.api.admin_alerts import alert_routes
from gateway.api.admin_budgets import budget_routes
from gateway.api.admin_keys import key_routes
from gateway.api.admin_overrides import override_routes
from gateway.api.admin_policies import policy_routes
from gateway.api.admin_teams import team_routes
from gateway.api.bodies import parameter
from gateway.api.health import describe
from gateway.api.pages import asked_limit
from gateway.cache.model import StoreUnavailable
from gateway.errors import InvalidRequest, Unavailable
from gateway.ledger.audit import list_acts
from gateway.pipeline import Pipeline

_MOST_ACTS = 10_000


def admin_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """All of /admin."""
    return [
        *key_routes(pipeline),
        *team_routes(pipeline),
        *budget_routes(pipeline),
        *override_routes(pipeline),
        *alert_routes(pipeline),
        *policy_routes(pipeline),
        *_operator_routes(pipeline),
        _audit_route(pipeline),
    ]


def _audit_route(pipeline: Pipeline) -> HTTPRouteHandler:
    @get(
        "/admin/audit",
        guards=[admin_guard(pipeline, "audit:read")],
        summary="Acts of administration, the newest first",
    )
    async def acts(request: Request[Any, Any, Any]) -> dict[str, Any]:
        asked = request.query_params
        limit = asked_limit(request, limit=100, most=_MOST_ACTS)
        try:
            since = float(asked["since"]) if asked.get("since") else None
        except ValueError:
            since = -1.0
        if since is not None and not 0 <= since < 1e12:
            raise InvalidRequest("'since' is a moment in unix seconds.", param="since")
        async with reading(pipeline) as connection:
            found = await list_acts(
                connection,
                since=since,
                action=asked.get("action"),
                actor=asked.get("actor"),
                limit=limit,
            )
        return {"acts": msgspec.to_builtins(found)}

    return acts


def _operator_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    reads = [admin_guard(pipeline, "operations:read")]
    parts = pipeline.parts

    @get("/admin/backends", guards=reads, summary="Backends and their condition")
    async def backends() -> dict[str, Any]:
        return {"backends": (await describe(pipeline))["backends"]}

    @get("/admin/cache", guards=reads, summary="The caches' condition")
    async def cache() -> dict[str, Any]:
        return await parts.caches.state() if parts.caches is not None else {}

    @delete(
        "/admin/cache",
        guards=[admin_guard(pipeline, "operations:write")],
        status_code=200,
        summary="Forget a team's answers",
    )
    async def clear_cache(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await clear_caches(pipeline, request, parameter(request, "namespace"))

    return [backends, cache, clear_cache]


async def clear_caches(
    pipeline: Pipeline, request: Request[Any, Any, Any], namespace: str
) -> dict[str, Any]:
    """Forget a team's answers; the dashboard's form does the same."""
    caches = pipeline.parts.caches
    async with acting(pipeline, request, "cache.clear", namespace):
        try:
            removed = await caches.clear(namespace) if caches is not None else 0
        except StoreUnavailable:
            raise Unavailable("The cache's store does not answer.") from None
    return {"namespace": namespace, "removed": removed}
