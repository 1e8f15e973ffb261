"""/admin/keys: made, shown without their secrets, limited, rotated, revoked."""

import time
from typing import Any

from litestar import Request, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.api.acts import Act, acting, admin_guard, reading
from gateway.api.bodies import read_body
from gateway.api.guards import caller_of
from gateway.errors import Forbidden
from gateway.ledger import key_store
from gateway.ledger.key_store import KeyBody, shown_key
from gateway.limits.model import check_limits
from gateway.pipeline import Pipeline

AnyRequest = Request[Any, Any, Any]


class Rotation(Struct, kw_only=True, forbid_unknown_fields=True):
    overlap_s: float = 0.0


class KeyChange(Struct, kw_only=True, forbid_unknown_fields=True):
    limits: dict[str, Any]


def key_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """All of /admin/keys."""
    reads = [admin_guard(pipeline, "keys:read")]
    writes = [admin_guard(pipeline, "keys:write")]

    @get("/admin/keys", guards=reads, summary="All keys; never a secret")
    async def list_keys(request: Request[Any, Any, Any]) -> dict[str, Any]:
        caller = caller_of(request)
        team = caller.team if caller.role == "team" else request.query_params.get("team")
        async with reading(pipeline) as connection:
            found = await key_store.list_keys(connection, team=team)
        return {"keys": [shown_key(key) for key in found]}

    @post("/admin/keys", guards=writes, summary="Make a key; its secret is shown once")
    async def create(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await create_key(pipeline, request, await read_body(request, KeyBody))

    @patch("/admin/keys/{key_id:str}", guards=writes, summary="Set a key's rate limits")
    async def change(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, KeyChange)
        return await limit_key(pipeline, request, request.path_params["key_id"], body.limits)

    @delete("/admin/keys/{key_id:str}", guards=writes, status_code=200, summary="Revoke a key")
    async def revoke(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await revoke_key(pipeline, request, request.path_params["key_id"])

    @post("/admin/keys/{key_id:str}/rotate", guards=writes, summary="Give a key a new secret")
    async def rotate(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, Rotation)
        return await rotate_key(pipeline, request, request.path_params["key_id"], body.overlap_s)

    return [list_keys, create, change, revoke, rotate]


# What the paths and the dashboard's forms do


async def create_key(pipeline: Pipeline, request: AnyRequest, body: KeyBody) -> dict[str, Any]:
    """A new key with its secret, the only time that it is seen."""
    now = time.time()
    async with acting(pipeline, request, "keys.create", body.team) as (act, connection):
        act.require("keys:write", team=body.team)
        _check_power(act, body.scopes, body.role)
        key, secret = await key_store.create_key(connection, body.wanted(now), now=now)
        act.target = key.id
        act.details = {"team": key.team, "scopes": list(key.scopes), "role": key.role}
    return {"key": secret, **{k: v for k, v in shown_key(key).items() if k != "prefix"}}


async def limit_key(
    pipeline: Pipeline, request: AnyRequest, key_id: str, limits: dict[str, Any]
) -> dict[str, Any]:
    """Set a key's rate limits."""
    async with acting(pipeline, request, "keys.limit", key_id) as (act, connection):
        act.require("keys:write", team=(await key_store.get_key(connection, key_id)).team)
        act.details = {"limits": limits}
        key = await key_store.limit_key(connection, key_id, check_limits(limits))
    return shown_key(key)


async def revoke_key(pipeline: Pipeline, request: AnyRequest, key_id: str) -> dict[str, Any]:
    """Let nobody in with it any more."""
    async with acting(pipeline, request, "keys.revoke", key_id) as (act, connection):
        act.require("keys:write", team=(await key_store.get_key(connection, key_id)).team)
        key = await key_store.revoke_key(connection, key_id, now=time.time())
    return shown_key(key)


async def rotate_key(
    pipeline: Pipeline, request: AnyRequest, key_id: str, overlap_s: float
) -> dict[str, Any]:
    """A new secret for the same key."""
    async with acting(pipeline, request, "keys.rotate", key_id) as (act, connection):
        old = await key_store.get_key(connection, key_id)
        act.require("keys:write", team=old.team)
        _check_power(act, old.scopes, old.role)
        act.details = {"overlap_s": overlap_s}
        key, secret = await key_store.rotate_key(
            connection, key_id, overlap_s=overlap_s, now=time.time()
        )
    return {"id": key.id, "key": secret}


def _check_power(act: Act, scopes: Any, role: str | None) -> None:
    """Nobody hands out more than he has. Raises Forbidden."""
    if act.caller.role != "team":
        return
    if "reports" in scopes or ("admin" in scopes and role != "team"):
        raise Forbidden(
            "A key with the role 'team' may make keys for inference, and admin keys with its own "
            "role; no others."
        )
