"""/v1/batches: many requests in a file, answered within a day, each booked like any other."""

from typing import Annotated, Any, Literal

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.api.auth import require_endpoint
from gateway.api.bodies import read_body
from gateway.api.database import answering
from gateway.api.guards import caller_of, guard
from gateway.api.pages import one_of, page_of
from gateway.batches.lines import ENDPOINTS
from gateway.batches.runner import BatchRunner
from gateway.errors import Conflict, Forbidden, InvalidRequest
from gateway.pipeline import Pipeline


class BatchBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a batch is made of."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: (
        Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None
    ) = None


def batch_routes(pipeline: Pipeline, batches: BatchRunner) -> list[HTTPRouteHandler]:
    """All of /v1/batches."""
    guards = [guard(pipeline, "inference")]
    store = batches.store
    enabled = pipeline.parts.settings.batches.enabled

    @post("/v1/batches", guards=guards, status_code=200, summary="Have a file's requests answered")
    async def create(request: Request[Any, Any, Any]) -> dict[str, Any]:
        if not enabled:
            raise Forbidden("Batches are turned off here: [batches] enabled = false.")
        body = await read_body(request, BatchBody)
        caller = caller_of(request)
        if body.endpoint not in ENDPOINTS:
            raise InvalidRequest(
                f"endpoint is {body.endpoint!r}; allowed: {', '.join(ENDPOINTS)}.", param="endpoint"
            )
        require_endpoint(caller, body.endpoint.removeprefix("/v1/"))
        with answering():
            file = await batches.files.find(caller, body.input_file_id)
            if file is None or file["purpose"] != "batch":
                raise InvalidRequest(
                    f"There is no file {body.input_file_id!r} of the purpose 'batch'.",
                    param="input_file_id",
                )
            made = await store.create(
                caller,
                endpoint=body.endpoint,
                input_file_id=body.input_file_id,
                metadata=body.metadata,
            )
        batches.wake()
        return made

    @get("/v1/batches", guards=guards, summary="Your team's batches")
    async def listed(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await page_of(request, store, limit=20, most=100)

    @get("/v1/batches/{id:str}", guards=guards, summary="One of them")
    async def one(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await one_of(request, store, "batch")

    @post(
        "/v1/batches/{id:str}/cancel",
        guards=guards,
        status_code=200,
        summary="Begin no further request of it",
    )
    async def cancel(request: Request[Any, Any, Any]) -> dict[str, Any]:
        shown = await one_of(request, store, "batch")
        with answering():
            cancelled = await store.cancel(shown["id"])
        if cancelled["status"] not in ("cancelling", "cancelled"):
            raise Conflict(f"The batch is {cancelled['status']} already.")
        batches.wake()
        return cancelled

    return [create, listed, one, cancel]
