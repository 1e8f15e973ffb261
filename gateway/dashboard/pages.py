"""The pages' paths: who may open what, and what becomes of a form.

Everything shown and done goes through the functions of the API. A key opens the pages that its
scopes allow; others are neither linked nor shown, and a try is refused and written down.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect, ServerSentEvent
from msgspec import Struct

from gateway.api.acts import admit, note_refusal
from gateway.api.database import answering
from gateway.dashboard.alerts import alerts
from gateway.dashboard.budgets import budgets
from gateway.dashboard.caches import caches
from gateway.dashboard.costs import costs
from gateway.dashboard.forms import FORMS, NOTES, Form
from gateway.dashboard.live import Feed
from gateway.dashboard.machines import machines
from gateway.dashboard.overview import overview
from gateway.dashboard.planner import planner
from gateway.dashboard.policies import policies
from gateway.dashboard.questions import Questions
from gateway.dashboard.render import HEADERS, STATIC, csv_file, html, prepare, static_file
from gateway.dashboard.requests import request, requests
from gateway.dashboard.routing import routing
from gateway.dashboard.visitor import (
    COOKIE,
    SIGNED_IN_S,
    AnyRequest,
    Visit,
    refuse_foreign_forms,
    visitor,
    zone_of,
)
from gateway.errors import Forbidden, GatewayError, InvalidApiKey, NotFound
from gateway.ledger.keys import Caller
from gateway.ledger.report_query import ReportError
from gateway.pipeline import Pipeline

STILL_ALLOWED_EVERY = 5
"""Live messages after which a watcher's key is looked at again."""
_YEAR_S = 31_536_000


class Page(Struct, frozen=True):
    """One page."""

    path: str
    name: str
    """Of its template."""
    label: str
    """In the navigation; empty: it is reached from another page."""
    may: Callable[[Caller], bool]
    needs: str
    """What the key must have, in words."""
    fill: Callable[[Visit], Awaitable[dict[str, Any]]]


def _reports(caller: Caller) -> bool:
    return caller.may("reports")


def _reports_or_team(caller: Caller) -> bool:
    """A team's admin sees what his own team asked and spent."""
    return caller.may("reports") or "admin" in caller.scopes


def _administers(caller: Caller) -> bool:
    return caller.can("budgets:read", team=caller.team)


def _operates(caller: Caller) -> bool:
    return caller.can("operations:read")


_SCOPE = "the scope 'reports' or 'admin'"
_ADMIN = "the scope 'admin'"
_OPERATIONS = "the scope 'admin' with a role for operations"
PAGES = (
    Page("/", "overview", "Overview", _reports, _SCOPE, overview),
    Page("/costs", "costs", "Costs", _reports_or_team, _SCOPE, costs),
    Page("/requests", "requests", "Requests", _reports_or_team, _SCOPE, requests),
    Page("/request/{request_id:path}", "request", "", _reports_or_team, _SCOPE, request),
    Page("/routing", "routing", "Routing", _reports, _SCOPE, routing),
    Page("/caches", "caches", "Caches", _reports, _SCOPE, caches),
    Page("/backends", "backends", "Machines", _reports, _SCOPE, machines),
    Page("/alerts", "alerts", "Alerts", _operates, _OPERATIONS, alerts),
    Page("/planner", "planner", "Planner", _reports, _SCOPE, planner),
    Page("/budgets", "budgets", "Budgets and keys", _administers, _ADMIN, budgets),
    Page("/policies", "policies", "Policies", _operates, _OPERATIONS, policies),
)
_BY_NAME = {page.name: page for page in PAGES}


class Dashboard:
    """Shows pages and takes forms; one per gateway process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.feed = Feed(pipeline)
        self.questions = Questions(pipeline.parts)

    async def show(self, asked: AnyRequest, page: Page) -> Response[Any]:
        """A page, one of its charts as CSV, the way to sign in, or why not."""
        await prepare()
        try:
            visit = await self._visit(asked)
        except InvalidApiKey:
            if "text/html" not in asked.headers.get("accept", ""):
                raise  # a script: it hears 401, as on every other path
            return Redirect("/sign-in")
        except GatewayError as error:
            return self.problem(None, error.message, error.status)
        if not page.may(visit.caller):
            first = self._first(visit.caller)
            if page.path == "/" and first is not None:
                return Redirect(first.path)
            why = f"This key may not open {page.label or 'this page'}: it needs {page.needs}."
            await note_refusal(self.pipeline, asked, visit.caller, why)
            return self.problem(visit.caller, why, 403)
        note = NOTES.get(asked.query_params.get("done", ""), "")
        return await self._filled(visit, page, {"note": note})

    async def act(self, asked: AnyRequest, form: Form) -> Response[Any]:
        """Do what a form asks for, and show what came of it."""
        caller: Caller | None = None
        try:
            refuse_foreign_forms(self.pipeline, asked)
            visit = await self._visit(asked)
            caller = visit.caller
            await admit(self.pipeline, asked, caller, form.permission, team=caller.team)
        except InvalidApiKey as error:
            return html("sign_in", _nobody(problem=error.message), error.status)
        except GatewayError as error:
            return self.problem(caller, error.message, error.status)
        page = _BY_NAME[form.page]
        sent = await asked.form()
        try:
            with answering():
                done = await form.act(visit, sent)
        except GatewayError as error:
            fields = [(name, value) for name, value in sent.multi_items() if isinstance(value, str)]
            refused = {"problem": error.message, "typed": {"path": form.path, "fields": fields}}
            return await self._filled(visit, page, refused, error.status)
        if isinstance(done, str):
            return Redirect(f"{page.path}?done={done}", status_code=303)
        return await self._filled(visit, page, done)

    async def _visit(self, asked: AnyRequest) -> Visit:
        return Visit(
            pipeline=self.pipeline,
            request=asked,
            caller=await visitor(self.pipeline, asked),
            tz=zone_of(asked),
            asked=dict(asked.query_params),
            questions=self.questions,
            live=self.feed.figures(),
        )

    async def _filled(
        self, visit: Visit, page: Page, beside: dict[str, Any], status: int = 200
    ) -> Response[Any]:
        try:
            with answering():
                values = await page.fill(visit)
        except (ReportError, GatewayError) as error:
            code = error.status if isinstance(error, GatewayError) else 400
            return self.problem(visit.caller, str(error), code)
        chart = values.get("charts", {}).get(visit.asked.get("csv", ""))
        if chart is not None:
            return csv_file(chart)
        shown = {"note": "", "problem": "", "made": None} | values | beside
        return html(page.name, {**self._frame(visit, page), **shown}, status)

    def problem(self, caller: Caller | None, words: str, status: int) -> Response[str]:
        """A page that says why not."""
        first = None if caller is None else self._first(caller)
        values = {"words": words, "status": status, "first": first}
        return html("problem", {**_nobody(), **values, **self._menu(caller)}, status)

    def _frame(self, visit: Visit, page: Page) -> dict[str, Any]:
        signed_in = COOKIE in visit.request.cookies
        return {
            **_nobody(),
            **self._menu(visit.caller),
            "page": page.name,
            "signed_in": signed_in,
            "tz": visit.tz,
            "here": visit.request.url.path,
            "query": "&".join(
                part
                for part in visit.request.url.query.split("&")
                if part and not part.startswith(("csv=", "done="))
            ),
        }

    def _menu(self, caller: Caller | None) -> dict[str, Any]:
        pages = [page for page in PAGES if page.label and caller is not None and page.may(caller)]
        return {"pages": pages, "caller": caller}

    def _first(self, caller: Caller) -> Page | None:
        return next((page for page in PAGES if page.label and page.may(caller)), None)

    async def watch(self, asked: AnyRequest) -> AsyncIterator[str]:
        """Live messages, for as long as the key may see them."""
        seen = 0
        rows = "rows" in asked.query_params
        async for message in self.feed.messages(rows=rows):
            yield message
            seen += 1
            if seen % STILL_ALLOWED_EVERY == 0 and not await self._still(asked):
                return

    async def _still(self, asked: AnyRequest) -> bool:
        try:
            return _reports(await visitor(self.pipeline, asked))
        except GatewayError:
            return False


def _nobody(problem: str = "") -> dict[str, Any]:
    """Of a page for somebody who is not known."""
    return {"caller": None, "page": "", "pages": [], "signed_in": False, "problem": problem,
            "note": "", "typed": None, "here": "/", "query": "", "tz": "UTC"}  # fmt: skip


def dashboard_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """The pages, their forms, /live, /static, /sign-in and /sign-out."""
    board = Dashboard(pipeline)

    def page(one: Page) -> HTTPRouteHandler:
        @get(one.path, name=f"page {one.name}", include_in_schema=False)
        async def handler(request: AnyRequest) -> Response[Any]:
            return await board.show(request, one)

        return handler

    def form(one: Form) -> HTTPRouteHandler:
        @post(one.path, name=f"form {one.path}", include_in_schema=False, status_code=200)
        async def handler(request: AnyRequest) -> Response[Any]:
            return await board.act(request, one)

        return handler

    @get("/live", include_in_schema=False)
    async def live(request: AnyRequest) -> Response[Any]:
        caller = await visitor(pipeline, request)
        if not _reports(caller):
            why = f"Live figures need {_SCOPE}."
            await note_refusal(pipeline, request, caller, why)
            raise Forbidden(why)
        return ServerSentEvent(board.watch(request), headers=dict(HEADERS))

    @get("/static/{name:str}", include_in_schema=False)
    async def static(request: AnyRequest) -> Response[bytes]:
        name = request.path_params["name"]
        body = static_file(name)
        if body is None:
            raise NotFound(f"There is no file {name!r}.")
        headers = {**HEADERS, "cache-control": f"public, max-age={_YEAR_S}, immutable"}
        return Response(body, headers=headers, media_type=STATIC[name])

    return [*map(page, PAGES), *map(form, FORMS), live, static, *_signing(board)]


def _signing(board: Dashboard) -> list[HTTPRouteHandler]:
    pipeline = board.pipeline

    @get("/sign-in", include_in_schema=False)
    async def sign_in_form() -> Response[str]:
        await prepare()
        return html("sign_in", _nobody())

    @post("/sign-in", include_in_schema=False, status_code=200)
    async def sign_in(request: AnyRequest) -> Response[Any]:
        try:
            refuse_foreign_forms(pipeline, request)
            key = str((await request.form()).get("key", "")).strip()
            headers = {"authorization": f"Bearer {key}"}
            caller = await pipeline.gate.caller(headers, request.scope.get("client"))
            first = board._first(caller)
            if first is None:
                why = f"This key opens no page: it needs {_SCOPE}."
                await note_refusal(pipeline, request, caller, why)
                raise Forbidden(why)
        except GatewayError as error:
            return html("sign_in", _nobody(problem=error.message), error.status)
        response = Redirect(first.path, status_code=303)
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
        try:
            refuse_foreign_forms(pipeline, request)
        except Forbidden as error:
            return board.problem(None, error.message, error.status)
        response = Redirect("/sign-in", status_code=303)
        response.delete_cookie(COOKIE)
        return response

    return [sign_in_form, sign_in, sign_out]
