"""Recent requests out of the ledger, newest first, never looking at more rows than it says."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from gateway.dashboard.charts import iso
from gateway.ledger import subjects
from gateway.ledger.money import usd_text
from gateway.ledger.tables import requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

PAGE_ROWS = 50
SEARCHED = 10_000
"""Rows that one page looks through for those that fit: what is rare is found by going on."""
_LATENCY_ROWS = 2_000
FILTERS = ("team", "key", "user", "model", "backend", "rule", "task", "cache", "outcome")
_SHOWN = (
    "request_id", "started_us", "team", "key", "model", "backend", "rule", "task", "cache",
    "outcome", "status", "error_code", "duration_ms", "prompt_tokens", "completion_tokens",
    "cost_nano_usd",
)  # fmt: skip


async def recent_requests(
    connection: "AsyncConnection",
    filters: Mapping[str, str] | None = None,
    *,
    since_us: int = 0,
    before_us: int | None = None,
    limit: int = PAGE_ROWS,
) -> list[dict[str, Any]]:
    """The newest requests, at most `limit`, that fit `filters` (by column of FILTERS)."""
    wanted = {name: text for name, text in (filters or {}).items() if name in FILTERS and text}
    for kind in subjects.SUBJECT_KINDS:
        if kind in wanted:
            ids = await subjects.find_ids(connection, [(kind, wanted[kind])])
            wanted[kind] = ids.get((kind, wanted[kind]), wanted[kind])
    part = select(*(requests.c[name] for name in {*_SHOWN, *wanted}))
    part = part.where(requests.c.started_us >= since_us)
    if before_us is not None:
        part = part.where(requests.c.started_us < before_us)
    part = part.order_by(requests.c.started_us.desc())
    if wanted:
        newest = part.limit(SEARCHED).subquery()
        part = select(*(newest.c[name] for name in _SHOWN)).order_by(newest.c.started_us.desc())
        part = part.where(*(newest.c[name] == text for name, text in wanted.items()))
    found = (await connection.execute(part.limit(limit))).all()
    rows = [dict(row._mapping) for row in found]
    names = await subjects.names_of(connection, {row["team"] for row in rows})
    for row in rows:
        row["team"] = subjects.shown(row["team"], names)
        row["at"] = iso(row["started_us"] / 1e6)
        row["cost_usd"] = usd_text(row.pop("cost_nano_usd"))
    return rows


async def searched_until(
    connection: "AsyncConnection", *, since_us: int = 0, before_us: int | None = None
) -> int | None:
    """When the oldest row started that a filtered page looks at; None: it looks at all."""
    at = requests.c.started_us
    part = select(at).where(at >= since_us)
    if before_us is not None:
        part = part.where(at < before_us)
    part = part.order_by(at.desc()).offset(SEARCHED - 1).limit(1)
    found: int | None = (await connection.execute(part)).scalar_one_or_none()
    return found


async def latencies(connection: "AsyncConnection", *, since: datetime) -> dict[str, Any]:
    """p50, p95 and p99 of the newest requests since then that were answered, ms."""
    found = await connection.execute(
        select(requests.c.duration_ms)
        .where(requests.c.started_us >= round(since.timestamp() * 1e6))
        .where(requests.c.outcome == "ok")
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


async def any_request(connection: "AsyncConnection") -> bool:
    """Whether the ledger has one at all."""
    newest = await connection.execute(select(func.max(requests.c.started_us)))
    return newest.scalar_one_or_none() is not None
