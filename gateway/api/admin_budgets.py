"""/admin/budgets: limits, what is left of them, and the thresholds that were passed."""

from typing import Any

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.api.acts import Act, acting, admin_guard, reading
from gateway.api.bodies import parameter, read_body
from gateway.api.guards import caller_of
from gateway.errors import Forbidden, InvalidRequest
from gateway.ledger import key_store
from gateway.ledger.budget_alerts import list_alerts
from gateway.ledger.budget_store import (
    BudgetBody,
    check_scope,
    counter_of,
    list_spending,
    read_spend,
    remove_budget,
    set_budget,
    shown_budget,
)
from gateway.ledger.budget_subjects import missing_subject
from gateway.ledger.keys import Caller
from gateway.ledger.money import usd_text
from gateway.ledger.overruns import list_overruns
from gateway.pipeline import Pipeline


def budget_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """All of /admin/budgets."""
    reads = [admin_guard(pipeline, "budgets:read")]
    writes = [admin_guard(pipeline, "budgets:write")]

    @get("/admin/budgets", guards=reads, summary="All budgets and what is left of them")
    async def budgets(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return {"budgets": await shown_budgets(pipeline, caller_of(request))}

    @post("/admin/budgets", guards=writes, summary="Make or change a budget")
    async def change(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await change_budget(pipeline, request, await read_body(request, BudgetBody))

    @delete("/admin/budgets", guards=writes, status_code=200, summary="Remove a budget")
    async def delete_budget(request: Request[Any, Any, Any]) -> dict[str, Any]:
        scope = parameter(request, "scope")
        return await drop_budget(
            pipeline, request, scope, request.query_params.get("window", "day")
        )

    @get("/admin/budgets/alerts", guards=reads, summary="Thresholds that were passed")
    async def alerts(request: Request[Any, Any, Any]) -> dict[str, Any]:
        async with reading(pipeline) as connection:
            found = await list_alerts(connection)
            seen = await _seen(caller_of(request).role, caller_of(request).team, connection)
        return {
            "alerts": [
                {
                    "scope": alert.scope,
                    "window": alert.window,
                    "window_started_at": alert.window_started_at,
                    "percent": alert.percent,
                    "at": alert.at,
                    "spent_usd": usd_text(alert.spent_nano_usd),
                    "limit_usd": usd_text(alert.limit_nano_usd),
                }
                for alert in found
                if seen is None or alert.scope in seen
            ]
        }

    @get(
        "/admin/budgets/overruns",
        guards=reads,
        summary="What keys' requests cost beyond what was held for them",
    )
    async def overruns(request: Request[Any, Any, Any]) -> dict[str, Any]:
        try:
            since = float(request.query_params.get("since") or 0)
        except ValueError:
            raise InvalidRequest("'since' is in unix seconds.", param="since") from None
        if not 0 <= since < 1e11:
            raise InvalidRequest("'since' is in unix seconds.", param="since")
        async with reading(pipeline) as connection:
            found = await list_overruns(connection, since=since or None)
            seen = await _seen(caller_of(request).role, caller_of(request).team, connection)
        return {"overruns": [row for row in found if seen is None or f"key:{row['key']}" in seen]}

    return [budgets, change, delete_budget, alerts, overruns]


# What the paths and the dashboard do


async def shown_budgets(pipeline: Pipeline, caller: Caller) -> list[dict[str, Any]]:
    """All budgets that the caller may look at, and what is left of them."""
    async with reading(pipeline) as connection:
        found = await list_spending(connection, pipeline.parts.clock())
        seen = await _seen(caller.role, caller.team, connection)
    return [shown_budget(*pair) for pair in found if seen is None or pair[0].scope in seen]


async def change_budget(
    pipeline: Pipeline, request: Request[Any, Any, Any], body: BudgetBody
) -> dict[str, Any]:
    """Make or change a budget; `warning` says where it is nobody's."""
    parts = pipeline.parts
    if body.downgrade_policy is not None and body.downgrade_policy not in parts.book.names():
        raise InvalidRequest(
            f"There is no policy {body.downgrade_policy!r}; there are: "
            f"{', '.join(parts.book.names())}.",
            param="downgrade_policy",
        )
    await parts.ledger.flush()  # a new budget counts what was answered a moment ago, too
    async with acting(pipeline, request, "budgets.set", body.scope) as (act, connection):
        await _check_reach(act, body.scope, connection)
        act.details = msgspec.to_builtins(body)
        budget = await set_budget(connection, body.wanted())
        counter = counter_of(budget, parts.clock())
        spend = await read_spend(connection, [counter])
        warning = await missing_subject(
            connection, budget.scope, backends=parts.backend_settings.keys()
        )
    await parts.budgets.refresh()
    return shown_budget(budget, spend.get(counter)) | {"warning": warning}


async def drop_budget(
    pipeline: Pipeline, request: Request[Any, Any, Any], scope: str, window: str
) -> dict[str, Any]:
    """Remove a budget."""
    async with acting(pipeline, request, "budgets.remove", scope) as (act, connection):
        await _check_reach(act, scope, connection)
        act.details = {"window": window}
        await remove_budget(connection, scope=scope, window=window)
    await pipeline.parts.budgets.refresh()
    return {"scope": scope, "window": window, "removed": True}


async def _seen(role: str, team: str, connection: AsyncConnection) -> set[str] | None:
    """The scopes that a role may look at; None: all."""
    if role != "team":
        return None
    return {f"team:{team}", *await _own_scopes(team, connection)}


async def _own_scopes(team: str, connection: AsyncConnection) -> set[str]:
    keys = await key_store.list_keys(connection, team=team)
    users = await key_store.list_users(connection, team=team)
    return {f"key:{key.id}" for key in keys} | {f"user:{user['name']}" for user in users}


async def _check_reach(act: Act, scope: str, connection: AsyncConnection) -> None:
    """A team shares out what it was given among its keys and users. Raises Forbidden."""
    if act.caller.role != "team":
        return
    if check_scope(scope) not in await _own_scopes(act.caller.team, connection):
        raise Forbidden("A key with the role 'team' may set budgets of its team's keys and users.")
