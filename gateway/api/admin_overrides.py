"""/admin/overrides: pins, caches that are off, drained backends, each for a while.

They must work while the database is down, so nothing here waits for it: the row in the audit log
is written with the override, whenever that arrives in the database.
"""

from typing import Any

from litestar import Request, delete, get, put
from litestar.handlers import HTTPRouteHandler

from gateway.api.acts import admin_guard
from gateway.api.bodies import parameter, read_body
from gateway.api.guards import caller_of
from gateway.errors import NotFound
from gateway.overrides.asked import Asked, lifted
from gateway.overrides.model import Override, Wanted, shown
from gateway.pipeline import Pipeline


def override_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """List, set and lift."""
    parts = pipeline.parts
    writes = [admin_guard(pipeline, "operations:write")]
    asked = Asked(parts.backends, parts.book, parts.engine)

    @get(
        "/admin/overrides",
        guards=[admin_guard(pipeline, "operations:read")],
        summary="What operators have changed for a while",
    )
    async def current() -> dict[str, Any]:
        return {"overrides": [_in_full(one) for one in parts.overrides.current()]}

    @put(
        "/admin/overrides",
        guards=writes,
        summary="Pin a policy or backend, turn a cache off, drain a backend",
    )
    async def set_(request: Request[Any, Any, Any]) -> dict[str, Any]:
        wanted = await read_body(request, Wanted)
        override = await asked.override(
            wanted,
            now=parts.clock(),
            version=parts.overrides.next_version,
            **_who(request, wanted.by),
        )
        return _in_full(override) | {"stores": await parts.overrides.put(override)}

    @delete("/admin/overrides", guards=writes, status_code=200, summary="End an override")
    async def lift(request: Request[Any, Any, Any]) -> dict[str, Any]:
        slot = parameter(request, "slot")
        if slot not in {one.slot for one in parts.overrides.current()}:
            raise NotFound(f"No override {slot!r} is in force.", param="slot")
        version = parts.overrides.next_version(slot)
        who = _who(request, request.query_params.get("by") or "")
        stores = await parts.overrides.put(lifted(slot, version=version, **who))
        return {"slot": slot, "lifted": True, "stores": stores}

    def _who(request: Request[Any, Any, Any], by: str) -> dict[str, str]:
        """The key, and who says to use it."""
        key = caller_of(request).key_id
        client = request.scope.get("client")
        return {
            "actor": f"{key} ({by[:64]})" if by else key,
            "address": pipeline.gate.address(request.headers, client),
        }

    return [current, set_, lift]


def _in_full(override: Override) -> dict[str, Any]:
    return {**shown(override), "by": override.actor, "why": override.why}
