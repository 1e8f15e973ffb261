"""`GET /reports/costs`: the ledger's report, as `headgate report costs --format json` prints it."""

from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from sqlalchemy.exc import SQLAlchemyError

from gateway.api.database import database_refusal
from gateway.api.guards import guard
from gateway.errors import InvalidRequest
from gateway.ledger.compare import compared_report
from gateway.ledger.reports import ReportError, costs_report
from gateway.pipeline import Pipeline

_KNOWN = frozenset(
    {"group_by", "group-by", "since", "until", "tz", "idle_by", "compare", "against"}
)


def report_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/reports/costs."""

    @get("/reports/costs", guards=[guard(pipeline, "reports")], summary="Costs by group")
    async def costs(request: Request[Any, Any, Any]) -> dict[str, Any]:
        asked, parts = request.query_params, pipeline.parts
        unknown = sorted(set(asked) - _KNOWN)
        if unknown:
            raise InvalidRequest(
                f"Unknown parameter {unknown[0]!r}; there are group_by, since, until, tz, idle_by, "
                "compare, against.",
                param=unknown[0],
            )
        groups = asked.get("group_by") or asked.get("group-by") or ""
        await parts.ledger.flush(timeout_s=2.0)
        try:
            report: dict[str, Any] = {
                "group_by": [group.strip() for group in groups.split(",") if group.strip()],
                "since": asked.get("since"),
                "until": asked.get("until"),
                "tz": asked.get("tz") or "UTC",
                "idle_by": asked.get("idle_by") or "charges",
                "against": asked.get("against"),
            }
            if asked.get("compare"):
                report["compare"] = asked["compare"]
                return await compared_report(parts.engine, parts.settings, **report)
            return await costs_report(parts.engine, parts.settings, **report)
        except ReportError as error:
            raise InvalidRequest(str(error), param=error.param) from None
        except (SQLAlchemyError, OSError) as error:
            raise database_refusal(error) from None

    return [costs]
