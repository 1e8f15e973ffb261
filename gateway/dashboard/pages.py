"""The pages themselves. Everything shown comes from the same places as the API's answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from gateway.api.health import describe
from gateway.dashboard import figures
from gateway.dashboard.visitor import COOKIE, SIGNED_IN_S, AnyRequest, refuse_foreign_forms, visitor
from gateway.errors import Forbidden, GatewayError, InvalidApiKey, NotFound
from gateway.ledger.keys import Scope
from gateway.ledger.report_query import GROUP_KEYS, ReportError
from gateway.ledger.reports import costs_report
from gateway.pipeline import Pipeline

if TYPE_CHECKING:
    from jinja2 import Environment

LIVE_INTERVAL_S = 2.0
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
_STATIC = {"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8"}
Fill = Callable[[AnyRequest], Awaitable[dict[str, Any]]]


@cache
def _templates() -> "Environment":
    """Loaded when the first page is asked for: most gateways never show one."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    loader = PackageLoader("gateway.dashboard", "templates")
    always = select_autoescape(default=True, default_for_string=True)
    found = Environment(loader=loader, autoescape=always, undefined=StrictUndefined)
    found.filters["short_usd"] = figures.short_usd
    return found


def _html(template: str, values: dict[str, Any], status: int = 200) -> Response[str]:
    body = _templates().get_template(f"{template}.html.jinja").render(**values)
    return Response(body, status_code=status, headers=_HEADERS, media_type="text/html")


class Dashboard:
    """Fills the pages; one per gateway process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.parts = pipeline.parts

    async def show(
        self, request: AnyRequest, template: str, scope: Scope, fill: Fill
    ) -> Response[Any]:
        """A page, or the way to sign in, or why not."""
        try:
            caller = await visitor(self.pipeline, request, scope)
        except InvalidApiKey:
            if "text/html" not in request.headers.get("accept", ""):
                raise  # a script: it hears 401, as on every other path
            return Redirect("/sign-in")
        except Forbidden as error:
            return self._problem(error.message, 403)
        try:
            values = await fill(request)
        except (ReportError, GatewayError) as error:
            status = error.status if isinstance(error, GatewayError) else 400
            return self._problem(str(error), status)
        except SQLAlchemyError as error:
            return self._problem(f"The ledger's database does not answer: {error}", 503)
        signed_in = COOKIE in request.cookies
        return _html(
            template, {"caller": caller, "page": template, "signed_in": signed_in} | values
        )

    def _problem(self, words: str, status: int) -> Response[str]:
        values = {"caller": None, "page": "", "signed_in": True, "words": words, "status": status}
        return _html("problem", values, status)

    async def overview(self, _request: AnyRequest) -> dict[str, Any]:
        """Now, today and this month."""
        now = datetime.now(UTC)
        await self.parts.ledger.flush(timeout_s=1.0)
        since = figures.periods(now)
        engine, settings = self.parts.engine, self.parts.settings
        today = await costs_report(engine, settings, since=since["today"], group_by="backend")
        month = await costs_report(engine, settings, since=since["month"])
        async with engine.connect() as connection:
            times = await figures.latencies(connection, now)
            rows = await figures.recent_requests(connection, {}, limit=10)
        return {
            "health": await describe(self.pipeline),
            "today": today,
            "month": month,
            "bars": figures.bars(today["rows"], ["backend"], "cost_usd"),
            "latency": times,
            "requests": rows,
        }

    async def costs(self, request: AnyRequest) -> dict[str, Any]:
        """Any grouping, any period."""
        asked = request.query_params
        groups = [key for key in asked.get("group_by", "team").split(",") if key]
        since = asked.get("since") or figures.periods(datetime.now(UTC))["month"]
        await self.parts.ledger.flush(timeout_s=1.0)
        report = await costs_report(
            self.parts.engine,
            self.parts.settings,
            group_by=groups,
            since=since,
            until=asked.get("until") or None,
            tz=asked.get("tz") or "UTC",
        )
        return {
            "report": report,
            "asked": {"group_by": ",".join(groups), "since": since, "until": asked.get("until")},
            "keys": GROUP_KEYS,
            "bars": figures.bars(report["rows"], groups, "cost_usd"),
        }

    async def requests(self, request: AnyRequest) -> dict[str, Any]:
        """The newest requests, filtered."""
        asked = {name: request.query_params.get(name, "") for name in figures.FILTERS}
        before = request.query_params.get("before", "")
        await self.parts.ledger.flush(timeout_s=1.0)
        async with self.parts.engine.connect() as connection:
            rows = await figures.recent_requests(
                connection, asked, int(before) if before.isdigit() else None
            )
        older = rows[-1]["started_us"] if len(rows) == figures.PAGE_ROWS else None
        return {"requests": rows, "asked": asked, "older": older}

    async def request(self, request: AnyRequest) -> dict[str, Any]:
        """One request: decision, attempts, charges."""
        request_id = request.path_params["request_id"]
        found = await self.parts.ledger.find(request_id)
        if found is None:
            raise NotFound(f"There is no request {request_id!r}.")
        row = msgspec.to_builtins(found.request)
        return {"row": row, "charges": msgspec.to_builtins(found.charges)}

    async def backends(self, _request: AnyRequest) -> dict[str, Any]:
        """Each backend's load and machine; policies in use."""
        return {"health": await describe(self.pipeline), "policies": self.parts.book.names()}

    def live(self) -> dict[str, Any]:
        """The figures that change by the second."""
        state = self.parts.registry.state()
        return {
            "in_flight": self.pipeline.in_flight,
            "pending": self.parts.ledger.state()["pending"],
            **{f"load {name}": about["load"] for name, about in state.items()},
            **{f"ready {name}": "ready" if a["ready"] else "away" for name, a in state.items()},
        }


def dashboard_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/, /costs, /requests, /requests/{id}/page, /backends, /live, /sign-in, /sign-out."""
    board = Dashboard(pipeline)

    def page(path: str, template: str, scope: Scope, fill: Fill) -> HTTPRouteHandler:
        @get(path, name=f"page {template}", include_in_schema=False)
        async def handler(request: AnyRequest) -> Response[Any]:
            return await board.show(request, template, scope, fill)

        return handler

    @get("/live", include_in_schema=False)
    async def live(request: AnyRequest) -> Response[Any]:
        await visitor(pipeline, request, "reports")

        async def events() -> AsyncIterator[str]:
            while not pipeline.draining:
                yield json.dumps(board.live())
                await asyncio.sleep(LIVE_INTERVAL_S)

        return ServerSentEvent(events(), headers=_HEADERS)

    @get("/static/{name:str}", include_in_schema=False)
    async def static(request: AnyRequest) -> Response[bytes]:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise NotFound(f"There is no file {name!r}.")
        body = files("gateway.dashboard").joinpath("static", name).read_bytes()
        headers = {**_HEADERS, "cache-control": "max-age=300"}
        return Response(body, headers=headers, media_type=_STATIC[name])

    @get("/sign-in", include_in_schema=False)
    async def sign_in_form() -> Response[str]:
        values = {"caller": None, "page": "", "signed_in": False, "problem": ""}
        return _html("sign_in", values)

    @post("/sign-in", include_in_schema=False, status_code=200)
    async def sign_in(request: AnyRequest) -> Response[Any]:
        refuse_foreign_forms(request)
        key = str((await request.form()).get("key", "")).strip()
        try:
            headers = {"authorization": f"Bearer {key}"}
            await pipeline.gate.caller(headers, request.scope.get("client"))
        except GatewayError as error:
            values = {"caller": None, "page": "", "signed_in": False, "problem": error.message}
            return _html("sign_in", values, error.status)
        response = Redirect("/", status_code=303)
        response.set_cookie(
            COOKIE,
            key,
            max_age=SIGNED_IN_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @post("/sign-out", include_in_schema=False, status_code=200)
    async def sign_out(request: AnyRequest) -> Response[Any]:
        refuse_foreign_forms(request)
        response = Redirect("/sign-in", status_code=303)
        response.delete_cookie(COOKIE)
        return response

    return [
        page("/", "overview", "reports", board.overview),
        page("/costs", "costs", "reports", board.costs),
        page("/requests", "requests", "reports", board.requests),
        page("/requests/{request_id:str}/page", "request", "reports", board.request),
        page("/backends", "backends", "reports", board.backends),
        live,
        static,
        sign_in_form,
        sign_in,
        sign_out,
    ]
