"""/v1/files: the inputs and outputs of batches."""

from typing import Any

from litestar import Request, Response, delete, get, post
from litestar.datastructures import UploadFile
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from gateway.api.database import answering
from gateway.api.guards import caller_of, guard
from gateway.api.pages import one_of, page_of
from gateway.batches.runner import BatchRunner
from gateway.errors import Forbidden, InvalidRequest
from gateway.pipeline import Pipeline

_FIELDS = frozenset({"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"})
_LEAST_S, _MOST_S = 3_600, 2_592_000


def file_routes(pipeline: Pipeline, batches: BatchRunner) -> list[HTTPRouteHandler]:
    """All of /v1/files."""
    guards = [guard(pipeline, "inference")]
    files = batches.files
    enabled = pipeline.parts.settings.batches.enabled

    @post("/v1/files", guards=guards, status_code=200, summary="Upload the input of a batch")
    async def upload(request: Request[Any, Any, Any]) -> dict[str, Any]:
        if not enabled:
            raise Forbidden("Files are turned off here: [batches] enabled = false.")
        form = await _form(request)
        file = form["file"]
        with answering():
            return await files.upload(
                caller_of(request),
                await file.read(),
                filename=file.filename,
                expires_s=_expiry(form),
            )

    @get("/v1/files", guards=guards, summary="Your team's files")
    async def listed(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await page_of(request, files, limit=10_000, most=10_000)

    @get("/v1/files/{id:str}", guards=guards, summary="One of them")
    async def one(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return await one_of(request, files, "file")

    @get("/v1/files/{id:str}/content", guards=guards, summary="Its bytes")
    async def content(request: Request[Any, Any, Any]) -> Response[Any]:
        shown = await one_of(request, files, "file")
        return Stream(files.content(shown["id"]), media_type="application/octet-stream")

    @delete("/v1/files/{id:str}", guards=guards, status_code=200, summary="Remove it")
    async def remove(request: Request[Any, Any, Any]) -> dict[str, Any]:
        shown = await one_of(request, files, "file")
        with answering():
            gone = await files.delete(caller_of(request), shown["id"])
        return {"id": shown["id"], "object": "file", "deleted": gone}

    return [upload, listed, one, content, remove]


async def _form(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The upload's fields, checked. Raises InvalidRequest."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequest("Send multipart/form-data with the fields 'file' and 'purpose'.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidRequest(
            "Uploads are read as they are, without Content-Encoding.", param="content-encoding"
        )
    try:
        form = dict(await request.form())
    except HTTPException as error:
        if error.status_code != 400:
            raise  # too large
        raise InvalidRequest(f"The form cannot be read: {error.detail}.") from None
    unknown = sorted(form.keys() - _FIELDS)
    if unknown:
        raise InvalidRequest(f"Unknown field: {unknown[0]!r}.", param=unknown[0])
    if not isinstance(form.get("file"), UploadFile):
        raise InvalidRequest("Missing required field: 'file', with a file name.", param="file")
    if form.get("purpose") != "batch":
        raise InvalidRequest(
            f"purpose is {form.get('purpose')!r}; allowed: 'batch'.", param="purpose"
        )
    return form


def _expiry(form: dict[str, Any]) -> float | None:
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return None
    text = str(seconds)
    if not (text.isascii() and text.isdigit() and _LEAST_S <= int(text[:9]) <= _MOST_S):
        raise InvalidRequest(
            f"expires_after[seconds] is {text[:20]!r}; allowed: {_LEAST_S} to {_MOST_S}.",
            param="expires_after[seconds]",
        )
    return float(text)
