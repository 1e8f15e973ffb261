"""Decisions: as they were taken (`/requests/{id}`), and as they would be (`/route/explain`)."""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from backends.contract import Endpoint
from gateway.api.auth import require
from gateway.api.bodies import body_of
from gateway.api.chat import RESPONSES
from gateway.api.database import answering
from gateway.api.guards import caller_of, guard
from gateway.api.schemas import all_tags, check_request, read_options
from gateway.api.translate import decode_body, decode_strictly
from gateway.errors import ModelNotFound, NotFound
from gateway.pipeline import Pipeline, sticky_id
from gateway.repeats import Asked
from gateway.responses.question import chat_body
from gateway.responses.wire import ResponsesRequest
from gateway.routing.features import read
from gateway.routing.router import Router, sticky_draw
from gateway.settings import Settings


def request_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/requests/{id} and /route/explain."""
    parts = pipeline.parts
    guards = [guard(pipeline, "inference")]

    @get(
        "/requests/{request_id:path}",
        guards=[guard(pipeline)],
        summary="One request: decision, attempts, charges",
    )
    async def find(request: Request[Any, Any, Any]) -> dict[str, Any]:
        request_id = request.path_params["request_id"].removeprefix("/")
        with answering():
            found = await parts.ledger.find(request_id)
        caller = caller_of(request)
        reports = caller.may("reports")
        if not reports:
            require(caller, "inference")
        if found is None or not (reports or found.request.team == caller.team):
            raise NotFound(f"There is no request {request_id!r}.")
        return found.shown()

    @post(
        "/route/explain",
        guards=guards,
        status_code=200,
        summary="What would be decided; nothing is generated or spent",
    )
    async def explain(request: Request[Any, Any, Any]) -> dict[str, Any]:
        asked = _asked(await body_of(request), parts.router, parts.settings)
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
            needs=asked.needs,
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


def _asked(body: bytes, router: Router, settings: Settings) -> Asked:
    """The request that a body of any of the paths is. Raises WireError, InvalidRequest."""
    path = _path_of(body, router)
    drop = settings.server.unknown_fields == "drop"
    if path != RESPONSES:
        known = settings.capabilities()
        return Asked(*decode_body(path, body, drop_unknown=drop, capabilities=known))
    response, _, dropped, _ = decode_strictly(ResponsesRequest, body, drop_unknown=drop)
    chat = msgspec.json.encode(chat_body(response))
    request, raw, *_ = decode_body("chat/completions", chat, drop_unknown=False)
    return Asked(request, raw, dropped)


def _path_of(body: bytes, router: Router) -> Endpoint | Literal["responses"]:
    """Bodies can be told apart by their one required field; `input` is what two paths have."""
    try:
        fields: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = None
    if not isinstance(fields, dict) or "messages" in fields:
        return "chat/completions"  # decoding it again says what is wrong
    if "prompt" in fields and "input" not in fields:
        return "completions"
    if "input" not in fields:
        return "chat/completions"
    return "embeddings" if _embeds(fields, router) else RESPONSES


def _embeds(fields: dict[str, Any], router: Router) -> bool:
    """Whether a body with `input` asks for vectors: it says so, or its model makes only those."""
    given, model = fields["input"], fields.get("model")
    if "encoding_format" in fields or "dimensions" in fields:
        return True
    if isinstance(given, list) and given and not isinstance(given[0], dict):
        return True
    try:
        return isinstance(model, str) and router.names.only_embeds(model)
    except ModelNotFound:
        return False
