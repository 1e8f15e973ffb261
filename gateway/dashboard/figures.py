"""What the pages show, asked of the ledger: recent requests, latencies, costs."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gateway.ledger import subjects
from gateway.ledger.money import usd_text
from gateway.ledger.tables import requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

PAGE_ROWS = 50
_LATENCY_ROWS = 2_000
FILTERS = ("outcome", "cache", "backend", "task", "rule")
_SHOWN = (
    "request_id",
    "started_us",
    "team",
    "model",
    "backend",
    "rule",
    "task",
    "cache",
    "outcome",
    "status",
    "duration_ms",
    "prompt_tokens",
    "completion_tokens",
    "cost_nano_usd",
)


async def recent_requests(
    connection: "AsyncConnection",
    filters: Mapping[str, str],
    before_us: int | None = None,
    limit: int = PAGE_ROWS,
) -> list[dict[str, Any]]:
    """The newest requests, at most `limit`; `filters` by column of FILTERS."""
    wanted = select(*(requests.c[name] for name in _SHOWN)).order_by(requests.c.started_us.desc())
    for name in FILTERS:
        if filters.get(name):
            wanted = wanted.where(requests.c[name] == filters[name])
    if before_us is not None:
        wanted = wanted.where(requests.c.started_us < before_us)
    rows = [dict(row._mapping) for row in await connection.execute(wanted.limit(limit))]
    names = await subjects.names_of(connection, (row["team"] for row in rows))
    for row in rows:
        row["team"] = subjects.shown(row["team"], names)
        row["at"] = moment(row["started_us"])
        row["cost_usd"] = usd_text(row.pop("cost_nano_usd"))
    return rows


async def latencies(connection: "AsyncConnection", now: datetime) -> dict[str, Any]:
    """p50, p95 and p99 of the last hour's newest requests, ms."""
    since = round((now - timedelta(hours=1)).timestamp() * 1e6)
    found = await connection.execute(
        select(requests.c.duration_ms)
        .where(requests.c.started_us >= since)
        .order_by(requests.c.started_us.desc())
        .limit(_LATENCY_ROWS)
    )
    values = sorted(found.scalars())
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        **{f"p{p}": values[min(len(values) - 1, len(values) * p // 100)] for p in (50, 95, 99)},
    }


def moment(at_us: int) -> str:
    """RFC 3339 in UTC; the page's script shows it in the reader's zone."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds")


def short_usd(usd: str) -> str:
    """Dollars with as many digits as a tile has room for: cents, or three that say something."""
    value = Decimal(usd)
    if value == 0:
        return "0"
    digits = 2 if abs(value) >= 1 else 2 - value.adjusted()
    return f"{value:.{digits}f}"


def periods(now: datetime) -> dict[str, str]:
    """Begins of today and this month, UTC, as `since` of a report."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return {"today": day.isoformat(), "month": day.replace(day=1).isoformat()}


def bars(rows: list[dict[str, Any]], label: list[str], value: str) -> list[dict[str, Any]]:
    """The rows as bars: label, value as text, and the share of the longest, 0 to 100."""
    most = max((float(row[value] or 0) for row in rows), default=0.0)
    return [
        {
            "label": " · ".join(str(row[key]) for key in label) or "all",
            "value": str(row[value]),
            "share": 0.0 if most <= 0 else max(0.0, 100 * float(row[value] or 0) / most),
        }
        for row in rows
    ]
