"""`/caches`: exact answers, semantic answers and prompt prefixes, side by side."""

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from gateway.cache.model import StoreUnavailable
from gateway.dashboard.charts import Cell, Chart, iso
from gateway.dashboard.periods import PRESETS, Period, period_of, steps
from gateway.dashboard.render import now as clock
from gateway.dashboard.visitor import Visit
from gateway.errors import Unavailable
from gateway.ledger import subjects
from gateway.ledger.money import usd_text
from gateway.ledger.report_query import parse_query
from gateway.ledger.tables import requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

TOP = 20
COUNTED = 20_000
"""Newest requests among which reused answers are counted."""


async def caches(visit: Visit) -> dict[str, Any]:
    """Hits of the three layers, what they saved, what judging them cost, what is reused most."""
    now, parts = clock(), visit.parts
    period = period_of(visit.asked, visit.tz, now, default="7d")
    question: dict[str, Any] = {"tz": visit.tz, "now": now, **period.moments}
    stepped, (by_team, by_backend, by_kind) = await asyncio.gather(
        visit.questions.rows(group_by=[period.step], wanted={"counts"}, **question),
        visit.questions.tables(groups=["team", "backend", "kind"], **question),
    )
    query = parse_query(tz=visit.tz, now=now, **period.moments)
    async with parts.engine.connect() as connection:
        top = await _most_reused(connection, query.since_us, query.until_us)
    totals = _totals(by_team)
    state = {} if parts.caches is None else await _state(visit)
    kinds = {row["kind"]: row for row in by_kind}
    return {
        "state": state,
        "totals": totals,
        "teams": [{**row, **_rates(row)} for row in by_team],
        "backends": [{**row, **_rates(row)} for row in by_backend if row["prompt_tokens"]],
        "top": top,
        "counted": COUNTED,
        "audits": kinds.get("audit"),
        "encoder": kinds.get("encoder"),
        "rule": parts.overrides.effect.cache,
        "settings": parts.settings.cache,
        "period": period,
        "presets": PRESETS,
        "charts": {
            "rates": _over_time(stepped, period, visit.tz, now),
            "top": _top_chart(top),
        },
    }


async def _state(visit: Visit) -> dict[str, Any]:
    assert visit.parts.caches is not None
    try:
        return await visit.parts.caches.state()
    except StoreUnavailable:
        raise Unavailable("The cache's store does not answer.") from None


def _rates(row: dict[str, Any]) -> dict[str, float | None]:
    """Shares of requests by the answer caches, and of prompt tokens by the prefix cache."""
    count, tokens = row["requests"], row["prompt_tokens"]
    return {
        "exact_rate": row["cache_hits_exact"] / count if count else None,
        "semantic_rate": row["cache_hits_semantic"] / count if count else None,
        "prefix_rate": row["cached_prompt_tokens"] / tokens if tokens else None,
    }


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("requests", "cache_hits_exact", "cache_hits_semantic", "prompt_tokens",
             "cached_prompt_tokens")  # fmt: skip
    sums: dict[str, Any] = {name: sum(row[name] for row in rows) for name in names}
    return {**sums, **_rates(sums)}


def _over_time(rows: list[dict[str, Any]], period: Period, tz: str, now: Any) -> Chart:
    found = {row[period.step]: _rates(row) for row in rows}
    names = ("exact_rate", "semantic_rate", "prefix_rate")
    table: list[tuple[Cell, ...]] = []
    for unix_s, said in steps(period, tz, now):
        rates = found.get(said, {})
        table.append((unix_s, *(_percent(rates.get(name)) for name in names)))
    columns = (period.step.capitalize(), "Exact", "Semantic", "Prefix (of prompt tokens)")
    title = f"Share served from each layer per {period.step}"
    return Chart(name="rates", title=title, kind="lines", columns=columns, rows=table, unit="%")


def _percent(rate: float | None) -> float | None:
    return None if rate is None else round(100 * rate, 3)


async def _most_reused(
    connection: "AsyncConnection", since_us: int, until_us: int
) -> list[dict[str, Any]]:
    """Answers by how often they were reused among the newest requests."""
    at = requests.c.started_us
    newest = (
        select(
            requests.c.reuses, requests.c.saved_nano_usd, requests.c.cache, requests.c.team,
            requests.c.backend, requests.c.task, at,
        )
        .where(at >= since_us, at < until_us)
        .order_by(at.desc())
        .limit(COUNTED)
        .subquery()
    )  # fmt: skip
    c, count = newest.c, func.count().label("hits")
    found = await connection.execute(
        select(
            c.reuses, count, func.sum(c.saved_nano_usd), func.max(c.started_us),
            func.min(c.team), func.min(c.backend), func.min(c.task),
        )
        .where(c.reuses.is_not(None), c.cache.in_(("exact", "semantic")))
        .group_by(c.reuses)
        .order_by(count.desc(), c.reuses)
        .limit(TOP)
    )  # fmt: skip
    rows = found.all()
    names = await subjects.names_of(connection, {row[4] for row in rows})
    return [
        {
            "request_id": request_id,
            "hits": hits,
            "saved_usd": usd_text(int(saved or 0)),
            "last": iso(last_us / 1e6),
            "team": subjects.shown(team, names),
            "backend": backend,
            "task": task,
        }
        for request_id, hits, saved, last_us, team, backend, task in rows
    ]


def _top_chart(top: list[dict[str, Any]]) -> Chart:
    names = ("request_id", "hits", "saved_usd", "team", "backend", "task", "last")
    return Chart(
        name="top",
        title="Most reused answers",
        kind="bars",
        columns=("Answer of request", "Hits", "Saved $", "Team", "Backend", "Task", "Last"),
        rows=[tuple(row[name] for name in names) for row in top],
    )
