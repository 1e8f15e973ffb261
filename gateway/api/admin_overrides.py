"""/admin/overrides: pins, caches that are off, drained backends, each for a while.

They must work while the database is down, so nothing here waits for it: the row in the audit log
is written with the override, whenever that arrives in the database.
"""

from typing import Any

from litestar import Request, delete, get, put
from litestar.handlers import HTTPRouteHandler

from gateway.api.acts import actor, admin_guard
from gateway.api.bodies import parameter, read_body
from gateway.api.guards import caller_of
from gateway.errors import NotFound
from gateway.overrides.asked import Asked, lifted
from gateway.overrides.model import Override, Wanted, shown
from gateway.pipeline import Pipeline


def override_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """List, set and lift."""
    writes = [admin_guard(pipeline, "operations:write")]

    @get(
        "/admin/overrides",
        guards=[admin_guard(pipeline, "operations:read")],
        summary="What operators have changed for a while",
    )
    async def current() -> dict[str, Any]:
        return {"overrides": [in_full(one) for one in pipeline.parts.overrides.current()]}

    @put(
        "/admin/overrides",
        guards=writes,
        summary="Pin a policy or backend, turn a cache off, drain a backend",
    )
    async def set_(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await set_override(pipeline, request, await read_body(request, Wanted))

    @delete("/admin/overrides", guards=writes, status_code=200, summary="End an override")
    async def lift(request: Request[Any, Any, Any]) -> dict[str, Any]:
        by = request.query_params.get("by") or ""
        return await lift_override(pipeline, request, parameter(request, "slot"), by=by)

    return [current, set_, lift]


# What the paths and the dashboard's forms do


async def set_override(
    pipeline: Pipeline, request: Request[Any, Any, Any], wanted: Wanted
) -> dict[str, Any]:
    """Put it in force, in every gateway process."""
    parts = pipeline.parts
    override = await Asked(parts.backends, parts.book, parts.engine).override(
        wanted,
        now=parts.clock(),
        version=parts.overrides.next_version,
        **_who(pipeline, request, wanted.by),
    )
    return in_full(override) | {"stores": await parts.overrides.put(override)}


async def lift_override(
    pipeline: Pipeline, request: Request[Any, Any, Any], slot: str, *, by: str = ""
) -> dict[str, Any]:
    """End it before its time."""
    overrides = pipeline.parts.overrides
    if slot not in {one.slot for one in overrides.current()}:
        raise NotFound(f"No override {slot!r} is in force.", param="slot")
    version = overrides.next_version(slot)
    who = _who(pipeline, request, by)
    stores = await overrides.put(lifted(slot, version=version, **who))
    return {"slot": slot, "lifted": True, "stores": stores}


def in_full(override: Override) -> dict[str, Any]:
    """As administrators see it."""
    return {**shown(override), "by": override.actor, "why": override.why}


def _who(pipeline: Pipeline, request: Request[Any, Any, Any], by: str) -> dict[str, str]:
    """The key, and who says to use it."""
    client = request.scope.get("client")
    return {
        "actor": actor(caller_of(request), by),
        "address": pipeline.gate.address(request.headers, client),
    }
