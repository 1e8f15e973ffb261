"""/admin/teams and /admin/users: who pays, and who asks."""

import time
from typing import Any

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.api.acts import acting, admin_guard, reading
from gateway.api.bodies import read_body
from gateway.api.guards import caller_of
from gateway.ledger import key_store
from gateway.limits.model import check_limits, shown
from gateway.pipeline import Pipeline


class NewTeam(Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    limits: dict[str, Any] | None = None
    weight: int | None = None


class TeamChange(Struct, kw_only=True, forbid_unknown_fields=True):
    limits: dict[str, Any] | None = None
    weight: int | None = None


class NewUser(Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    team: str
    limits: dict[str, Any] = msgspec.field(default_factory=dict)


def team_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """Both."""
    return [*_teams(pipeline), *_users(pipeline)]


def _teams(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    writes = [admin_guard(pipeline, "teams:write")]

    @get("/admin/teams", guards=[admin_guard(pipeline, "teams:read")], summary="All teams")
    async def list_teams(request: Request[Any, Any, Any]) -> dict[str, Any]:
        caller = caller_of(request)
        async with reading(pipeline) as connection:
            found = await key_store.list_teams(connection)
        own = [team for team in found if caller.can("teams:read", team=team["name"])]
        return {"teams": [{**team, "limits": shown(team["limits"])} for team in own]}

    @post("/admin/teams", guards=writes, summary="Make a team")
    async def create_team(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, NewTeam)
        async with acting(pipeline, request, "teams.create", body.name) as (_, connection):
            new = await key_store.create_team(connection, body.name, now=time.time())
            limits = None if body.limits is None else check_limits(body.limits)
            await key_store.change_team(connection, body.name, limits=limits, weight=body.weight)
        return {"name": body.name, "created": new}

    @patch("/admin/teams/{name:path}", guards=writes, summary="Set a team's limits and weight")
    async def change_team(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, TeamChange)
        return await change_one(
            pipeline, request, request.path_params["name"].removeprefix("/"), body
        )

    return [list_teams, create_team, change_team]


async def change_one(
    pipeline: Pipeline, request: Request[Any, Any, Any], name: str, body: TeamChange
) -> dict[str, Any]:
    """Set a team's limits and weight; the dashboard's form does the same."""
    async with acting(pipeline, request, "teams.change", name) as (act, connection):
        act.require("teams:write", team=name)
        limits = None if body.limits is None else check_limits(body.limits)
        act.details = {"limits": body.limits, "weight": body.weight}
        await key_store.change_team(connection, name, limits=limits, weight=body.weight)
    return {"name": name, "limits": body.limits, "weight": body.weight}


def _users(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    reads = [admin_guard(pipeline, "keys:read")]
    writes = [admin_guard(pipeline, "keys:write")]

    @get("/admin/users", guards=reads, summary="All users")
    async def list_users(request: Request[Any, Any, Any]) -> dict[str, Any]:
        caller = caller_of(request)
        team = caller.team if caller.role == "team" else request.query_params.get("team")
        async with reading(pipeline) as connection:
            found = await key_store.list_users(connection, team=team)
        return {"users": [{**user, "limits": shown(user["limits"])} for user in found]}

    @post("/admin/users", guards=writes, summary="Make a user, whom keys may belong to")
    async def create_user(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, NewUser)
        async with acting(pipeline, request, "users.create", body.name) as (act, connection):
            act.require("keys:write", team=body.team)
            act.details = {"team": body.team, "limits": body.limits}
            await key_store.create_user(
                connection,
                body.name,
                team=body.team,
                limits=check_limits(body.limits),
                now=time.time(),
            )
        return {"name": body.name, "team": body.team}

    @delete("/admin/users/{name:path}", guards=writes, status_code=200, summary="Remove a user")
    async def remove_user(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params["name"].removeprefix("/")
        async with acting(pipeline, request, "users.remove", name) as (act, connection):
            user = await key_store.get_user(connection, name)
            act.require("keys:write", team=user["team"])
            revoked = await key_store.remove_user(connection, name, now=time.time())
            act.details = {"revoked": revoked}
        return {"name": name, "removed": True, "keys_revoked": revoked}

    return [list_users, create_user, remove_user]
