"""Health and metrics."""

import importlib.metadata
import time
from typing import Any

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.guards import guard
from gateway.overrides.model import shown
from gateway.pipeline import Pipeline


def health_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/health, /health/live, /health/ready, /metrics."""
    parts = pipeline.parts

    @get("/health/live", summary="The process runs; no dependency is asked")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @get("/health/ready", summary="At least one backend can answer")
    async def ready() -> Response[dict[str, Any]]:
        names = [name for name in parts.registry.ready_names() if _answers(pipeline, name)]
        if pipeline.draining or not names:
            status = "draining" if pipeline.draining else "no backend is ready"
            return Response({"status": status}, status_code=503, headers={"retry-after": "1"})
        return Response({"status": "ready", "backends": names})

    @get("/health", summary="Everything in detail")
    async def health() -> dict[str, Any]:
        return await describe(pipeline)

    @get("/metrics", guards=[guard(pipeline, "reports")], summary="Prometheus metrics")
    async def metrics() -> Response[bytes]:
        for name, about in parts.registry.state().items():
            parts.metrics.backend_ready.labels(name).set(bool(about["ready"]))
            if isinstance(ejected := about.get("addresses_ejected"), int):
                parts.metrics.ejected.labels(name).set(ejected)
        parts.metrics.ledger_up.set(bool(parts.ledger.state()["ok"]))
        parts.metrics.ledger_waiting.set(parts.ledger.waiting_bytes())
        body, kind = parts.metrics.exposition()
        return Response(body, media_type=kind.partition("; charset=")[0])  # Litestar adds it

    return [live, ready, health, metrics]


async def describe(pipeline: Pipeline) -> dict[str, Any]:
    """What /health says: `degraded` when something is away that requests can do without."""
    parts = pipeline.parts
    backends = [{"name": name, **about} for name, about in parts.registry.state().items()]
    ledger = parts.ledger.state()
    budgets = parts.budgets.report()
    caches = await parts.caches.state() if parts.caches is not None else {}
    problems = list(parts.book.problems())
    problems += [
        f"backend {about['name']!r} is not ready: {about['detail']}"
        for about in backends
        if not about["ready"]
    ]
    problems += [
        f"backend {about['name']!r}: {about['addresses_ejected']} of {about['addresses']} "
        "addresses are ejected"
        for about in backends
        if about.get("addresses_ejected")
    ]
    problems += [f"cache: store {caches['store']}"] if caches.get("store") == "unavailable" else []
    problems += [f"ledger: {ledger['database_error']}"] if ledger["database_error"] else []
    problems += [f"journal: {ledger['journal_error']}"] if ledger["journal_error"] else []
    problems += [f"budgets: {budgets['error']}"] if budgets["error"] else []
    problems += ["limits: Redis is away"] if parts.limiter.report()["away"] else []
    for about in backends:
        settings = parts.backend_settings[str(about["name"])]
        machine = parts.settings.machine(settings)
        about["machine"] = machine.name if machine else None
        about["drained"] = parts.overrides.effect.drained.get(str(about["name"]))
    problems += parts.overrides.problems()
    usable = any(about["ready"] and _answers(pipeline, str(about["name"])) for about in backends)
    status = "ok" if usable and not problems else "degraded" if usable else "unavailable"
    return {
        "status": "draining" if pipeline.draining else status,
        "version": installed_version(),
        "uptime_s": round(time.time() - parts.started_at, 1),
        "requests_in_flight": pipeline.in_flight,
        "policy": (parts.overrides.effect.policy or parts.book.get()).ref,
        "overrides": [shown(one) for one in parts.overrides.current()],
        "backends": backends,
        "cache": caches,
        "ledger": ledger,
        "budgets": budgets,
        "limits": {**parts.limiter.report(), "waiting": parts.queues.waiting()},
        "problems": problems,
    }


def _answers(pipeline: Pipeline, name: str) -> bool:
    """Whether a backend answers chats: an encoder alone does not make the gateway ready."""
    if name in pipeline.parts.overrides.effect.drained:
        return False
    return pipeline.parts.backend_settings[name].kind != "encoder"


def installed_version() -> str:
    """Of the distribution."""
    try:
        return importlib.metadata.version("headgate")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
