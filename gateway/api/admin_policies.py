"""/admin/policies: check a file, try it on recent traffic, put it in force."""

import asyncio
import hashlib
from typing import Any

import msgspec
from litestar import Request, get, post, put
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct
from msgspec.structs import replace as but
from sqlalchemy import select

from gateway.api.acts import acting, admin_guard, reading
from gateway.api.bodies import read_body
from gateway.errors import Conflict, InvalidRequest
from gateway.ledger.tables import requests
from gateway.pipeline import Pipeline
from gateway.routing.policy_book import LoadedPolicy, UnknownPolicy, check_name, loaded_from
from gateway.routing.policy_files import file_of, replace
from gateway.routing.policy_problems import problems_of
from policies.problems import PolicyError

MOST_BYTES = 256 << 10
RECENT = 2_000
"""Requests that a version is tried on."""


class PolicyText(Struct, kw_only=True, forbid_unknown_fields=True):
    text: str
    instead_of: str | None = None
    """sha256 of the version that was edited: another one in the file by now is not overwritten."""


def policy_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """All of /admin/policies."""
    parts = pipeline.parts
    reads = [admin_guard(pipeline, "operations:read")]

    @get("/admin/policies", guards=reads, summary="All policies, and the one in use")
    async def policies() -> dict[str, Any]:
        active = parts.book.get()
        return {
            "active": {"name": active.name, "ref": active.ref, "path": active.path},
            "policies": parts.book.names(),
            "problems": parts.book.problems(),
        }

    @post(
        "/admin/policies/{name:str}/simulate",
        guards=reads,
        status_code=200,
        summary="Recent traffic through a version that is not in force; nothing is asked",
    )
    async def simulate(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, PolicyText)
        return await simulate_policy(pipeline, request.path_params["name"], body.text)

    @put(
        "/admin/policies/{name:str}",
        guards=[admin_guard(pipeline, "operations:write")],
        summary="Put a version in force: it decides from the next request on",
    )
    async def activate(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, PolicyText)
        return await activate_policy(pipeline, request, request.path_params["name"], body)

    return [policies, simulate, activate]


# What the paths and the dashboard's forms do


def check_policy(pipeline: Pipeline, text: str) -> list[dict[str, Any]]:
    """Errors and warnings, as `headgate policy check` finds them."""
    found = problems_of(text, pipeline.parts.settings)
    return [msgspec.structs.asdict(problem) for problem in found]


async def simulate_policy(pipeline: Pipeline, name: str, text: str) -> dict[str, Any]:
    """As `headgate policy replay` over the newest requests."""
    from gateway.routing.past import read_past  # numpy's tables: only for whoever simulates
    from gateway.routing.replay import replay as run

    parts = pipeline.parts
    loaded = _load(name, text)
    await parts.ledger.flush(timeout_s=1.0)
    now_us = round(parts.clock() * 1e6) + 1
    async with reading(pipeline) as connection:
        oldest = await connection.execute(
            select(requests.c.started_us)
            .order_by(requests.c.started_us.desc())
            .offset(RECENT - 1)
            .limit(1)
        )
        since_us = oldest.scalar_one_or_none() or 0
        past = await read_past(connection, since_us=since_us, until_us=now_us)
    cards = {name: but(card, ready=True) for name, card in parts.registry.cards().items()}
    versions = [loaded]
    if name in parts.book.names():
        versions.append(parts.book.get(name))
    judges = parts.router.judges
    return await asyncio.to_thread(run, past, versions, cards, parts.estimator, judges)


async def activate_policy(
    pipeline: Pipeline, request: Request[Any, Any, Any], name: str, body: PolicyText
) -> dict[str, Any]:
    """Write the version into its file; a shipped policy's goes into the first of policy_dirs."""
    book, folders = pipeline.parts.book, pipeline.parts.settings.routing.policy_dirs
    async with acting(pipeline, request, "policy.activate", name) as (act, _):
        act.require("operations:write")
        loaded = _load(name, body.text)
        errors = [p for p in check_policy(pipeline, body.text) if p["level"] == "error"]
        if errors:
            raise InvalidRequest(f"{name}: {errors[0]['message']}", param="text")
        now = book.get(name).sha256 if name in book.names() else None
        if body.instead_of is not None and now is not None and body.instead_of != now:
            raise Conflict(
                f"{name} is {name}@{now[:8]} by now, not {name}@{body.instead_of[:8]}, which was "
                "edited; look at what has changed first."
            )
        act.details = {"sha256": loaded.sha256, "instead_of": now}
        target = file_of(name, folders)
        try:
            await asyncio.to_thread(replace, target, body.text)
        except OSError as error:
            raise InvalidRequest(f"{target}: {error.strerror}.") from None
    return {"name": name, "ref": book.get(name).ref, "path": str(target)}


def _load(name: str, text: str) -> LoadedPolicy:
    if len(text.encode()) > MOST_BYTES:
        raise InvalidRequest(f"The policy has more than {MOST_BYTES} bytes.", param="text")
    try:
        check_name(name)
        return loaded_from(name, text, hashlib.sha256(text.encode()).hexdigest(), "draft")
    except (PolicyError, UnknownPolicy) as error:
        raise InvalidRequest(str(error), param="text") from None
