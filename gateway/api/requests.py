"""Decisions: as they were taken (`/requests/{id}`), and as they would be (`/route/explain`)."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from backends.contract import Endpoint
from gateway.api.database import answering
from gateway.api.guards import caller_of, guard
from gateway.api.schemas import all_tags, check_request, read_options
from gateway.api.translate import decode_body
from gateway.errors import NotFound
from gateway.pipeline import Pipeline, sticky_id
from gateway.repeats import Asked
from gateway.routing.features import read
from gateway.routing.router import sticky_draw


def request_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/requests/{id} and /route/explain."""
    parts = pipeline.parts
    guards = [guard(pipeline, "inference")]

    @get(
        "/requests/{request_id:path}",
        guards=guards,
        summary="One request: decision, attempts, charges",
    )
    async def find(request: Request[Any, Any, Any]) -> dict[str, Any]:
        request_id = request.path_params["request_id"].removeprefix("/")
        with answering():
            found = await parts.ledger.find(request_id)
        caller = caller_of(request)
        if found is None or not (caller.may("reports") or found.request.team == caller.team):
            raise NotFound(f"There is no request {request_id!r}.")
        shown: dict[str, Any] = msgspec.to_builtins(found)
        return shown

    @post(
        "/route/explain",
        guards=guards,
        status_code=200,
        summary="What would be decided; nothing is generated or spent",
    )
    async def explain(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await request.body()
        kind = _endpoint_of(body)
        drop = parts.settings.server.unknown_fields == "drop"
        asked = Asked(*decode_body(kind, body, drop_unknown=drop))
        wanted = asked.request
        check_request(wanted)
        options = read_options(request.headers)
        caller = caller_of(request)
        tags = all_tags(options, getattr(wanted, "metadata", None))
        facts = parts.router.facts(
            wanted,
            team=caller.team,
            key=caller.key_id,
            user=caller.user if caller.owned else wanted.user,
            tags=tags,
        )
        return await parts.router.explain(
            facts,
            text=read(asked.request).text,
            policy_name=options.policy,
            budget=parts.budgets.state(caller, tags),
            only=caller.only,
            now=datetime.fromtimestamp(parts.clock(), UTC),
            draw=sticky_draw(sticky_id(wanted, caller.team)),
            asked=asked,
        )

    return [find, explain]


def _endpoint_of(body: bytes) -> Endpoint:
    """Chats, completions and embeddings can be told apart by their one required field."""
    try:
        fields: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "chat/completions"  # decoding it again says what is wrong
    if isinstance(fields, dict) and "messages" not in fields:
        if "prompt" in fields:
            return "completions"
        if "input" in fields:
            return "embeddings"
    return "chat/completions"
