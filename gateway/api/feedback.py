"""`POST /feedback`: what a caller says of an answer, joined to its request in the ledger."""

from typing import Annotated, Any

from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.api.bodies import read_body
from gateway.api.database import answering
from gateway.api.guards import caller_of, guard
from gateway.errors import NotFound
from gateway.ledger.feedback import add_feedback
from gateway.pipeline import Pipeline


class Feedback(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body."""

    request_id: Annotated[str, Meta(min_length=1, max_length=128)]
    """Of x-headgate-request-id, or the answer's `id`."""
    score: Annotated[float, Meta(ge=0, le=1)]
    """0: useless, 1: as good as it can be."""
    comment: Annotated[str, Meta(max_length=2000)] = ""


def feedback_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/feedback."""
    parts = pipeline.parts

    @post(
        "/feedback",
        guards=[guard(pipeline, "inference")],
        status_code=200,
        summary="Say how good an answer was",
    )
    async def give(request: Request[Any, Any, Any]) -> dict[str, Any]:
        body = await read_body(request, Feedback)
        caller = caller_of(request)
        with answering():
            found = await parts.ledger.find(body.request_id)
            if found is None or not (caller.may("reports") or found.request.team == caller.team):
                raise NotFound(f"There is no request {body.request_id!r}.")
            request_id = found.request.request_id
            async with parts.engine.begin() as connection:
                await add_feedback(
                    connection,
                    request_id,
                    score=body.score,
                    comment=body.comment.replace("\x00", "\ufffd"),
                    now=parts.clock(),
                )
        return {"request_id": request_id, "score": body.score}

    return [give]
