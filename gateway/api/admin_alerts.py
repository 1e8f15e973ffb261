"""/admin/alerts: what is wrong, who was told, and whether telling works."""

from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.alerts.show import Tested, send_tests, shown_alerts, shown_channel
from gateway.api.acts import acting, admin_guard, reading
from gateway.api.bodies import read_body
from gateway.api.pages import asked_limit
from gateway.errors import InvalidRequest
from gateway.pipeline import Pipeline

_MOST = 1000


class Trial(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which channel; None: all."""

    channel: str | None = None


def alert_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """List alerts, test channels."""

    @get(
        "/admin/alerts",
        guards=[admin_guard(pipeline, "operations:read")],
        summary="Alerts, the newest first; what is not delivered; channels",
    )
    async def listed(request: Request[Any, Any, Any]) -> dict[str, Any]:
        asked = request.query_params
        async with reading(pipeline) as connection:
            found = await shown_alerts(
                connection,
                open_only=asked.get("open") in ("1", "true"),
                limit=asked_limit(request, limit=100, most=_MOST),
            )
        channels = pipeline.parts.settings.alerts.channels
        return {**found, "channels": [shown_channel(channel) for channel in channels]}

    @post(
        "/admin/alerts/test",
        guards=[admin_guard(pipeline, "operations:write")],
        status_code=200,
        summary="Send a test message",
    )
    async def test(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, Trial)
        return {"results": await try_channels(pipeline, request, body.channel)}

    return [listed, test]


async def try_channels(
    pipeline: Pipeline, request: Request[Any, Any, Any], name: str | None
) -> list[Tested]:
    """Send a test to one channel or to all, and write down who asked.

    Raises:
        InvalidRequest: there is no such channel, or none at all.
    """
    channels = pipeline.parts.settings.alerts.channels
    chosen = [channel for channel in channels if name in (None, channel.name)]
    if not chosen:
        known = ", ".join(channel.name for channel in channels) or "none is configured"
        words = f"No channel {name or ''!r}; [[alerts.channels]] has: {known}."
        raise InvalidRequest(words, param="channel")
    results = await send_tests(chosen)  # before the transaction: channels may take seconds
    async with acting(pipeline, request, "alerts.test", name or "all") as (act, _):
        act.details = {"delivered": [one.channel for one in results if one.delivered]}
    return results
