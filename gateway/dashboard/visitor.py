"""Who looks at the pages: the same keys as the API, kept in a cookie that scripts cannot read."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request

from gateway.api.auth import require
from gateway.errors import Forbidden
from gateway.ledger.keys import Caller, Scope
from gateway.pipeline import Pipeline

COOKIE = "headgate_key"
SIGNED_IN_S = 12 * 3600
AnyRequest = Request[Any, Any, Any]


async def visitor(pipeline: Pipeline, request: AnyRequest, scope: Scope | None) -> Caller:
    """The caller behind a page's request.

    Raises:
        InvalidApiKey: a key is required and neither header nor cookie has one.
        Forbidden: the key lacks the scope.
    """
    headers = dict(request.headers)
    key = request.cookies.get(COOKIE)
    if key and "authorization" not in headers:
        headers["authorization"] = f"Bearer {key}"
    caller = await pipeline.gate.caller(headers, request.scope.get("client"))
    if scope is not None:
        require(caller, scope)
    return caller


def refuse_foreign_forms(request: AnyRequest) -> None:
    """Raises Forbidden for a form that another site's page sent (cross-site request forgery)."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        raise Forbidden("This form was sent by a page of another site.")
    origin = request.headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden("This form was sent by a page of another site.")
