"""Who looks at the pages: the same keys as the API, kept in a cookie that scripts cannot read."""

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from litestar import Request
from msgspec import Struct

from gateway.dashboard.questions import Questions
from gateway.errors import Forbidden
from gateway.ledger.keys import Caller
from gateway.parts import Parts
from gateway.pipeline import Pipeline

COOKIE = "headgate_key"
ZONE_COOKIE = "headgate_tz"
SIGNED_IN_S = 12 * 3600
AnyRequest = Request[Any, Any, Any]


class Visit(Struct, frozen=True, kw_only=True):
    """One look at a page, or one form sent from it."""

    pipeline: Pipeline
    request: AnyRequest
    caller: Caller
    tz: str
    """IANA name of the reader's zone, UTC until the page's script has told it."""
    asked: Mapping[str, str]
    """Query parameters."""
    questions: Questions
    live: Mapping[str, str | int]
    """The figures that change by the second, as they are."""

    @property
    def parts(self) -> Parts:
        """The rooms behind the front door."""
        return self.pipeline.parts

    @property
    def only_team(self) -> str | None:
        """The one team whose figures the key may see; None: all."""
        return None if self.caller.may("reports") else self.caller.team


async def visitor(pipeline: Pipeline, request: AnyRequest) -> Caller:
    """The caller behind a page's request.

    Raises:
        InvalidApiKey: a key is required and neither header nor cookie has one.
    """
    headers = dict(request.headers)
    key = request.cookies.get(COOKIE)
    if key and "authorization" not in headers:
        headers["authorization"] = f"Bearer {key}"
    caller = await pipeline.gate.caller(headers, request.scope.get("client"))
    request.state.caller = caller  # where the admin paths look for who acts
    return caller


def zone_of(request: AnyRequest) -> str:
    """The reader's time zone."""
    name = request.query_params.get("tz") or unquote(request.cookies.get(ZONE_COOKIE, ""))
    try:
        return str(ZoneInfo(name)) if name else "UTC"
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return "UTC"


def refuse_foreign_forms(pipeline: Pipeline, request: AnyRequest) -> None:
    """Browsers say which page a form was on; scripts outside browsers say nothing and may pass.

    Raises:
        Forbidden: another site's page sent it (cross-site request forgery), or a page that reached
            an open gateway under a name of its own (DNS rebinding).
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    host = request.headers.get("host", "")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = bool(origin) and urlsplit(str(origin)).netloc != host
    if foreign:
        raise Forbidden("This form was sent by a page of another site.")
    if origin and pipeline.parts.settings.server.auth == "open" and not _is_local(host):
        raise Forbidden(
            f'Without keys (auth = "open") forms work under this machine\'s own address only, '
            f"not under {host!r}."
        )


def _is_local(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
