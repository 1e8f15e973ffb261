"""`/routing`: who answers what and how well, what quality costs, and the hand on it."""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from sqlalchemy import Text, cast, func, select

from gateway.api.admin_overrides import in_full
from gateway.dashboard.charts import Cell, Chart, over_time
from gateway.dashboard.periods import PRESETS, period_of, steps
from gateway.dashboard.render import now as clock
from gateway.dashboard.visitor import Visit
from gateway.ledger.records import CandidateRecord
from gateway.ledger.report_query import parse_query
from gateway.ledger.tables import feedback, requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

SAMPLED = 1_000
"""Newest decisions that predictions and the curve are read from."""
OPINIONS = 5_000
POINTS = 33
"""Prices of quality that the curve is computed for."""
_candidates = msgspec.json.Decoder(tuple[CandidateRecord, ...]).decode


async def routing(visit: Visit) -> dict[str, Any]:
    """Shares, quality, the curve, cascades, overrides."""
    now = clock()
    period = period_of(visit.asked, visit.tz, now, default="7d")
    question: dict[str, Any] = {"tz": visit.tz, "now": now, **period.moments}
    engine = visit.parts.engine
    stepped, (by_rule, by_kind) = await asyncio.gather(
        visit.questions.rows(group_by=[period.step, "backend"], wanted={"answers"}, **question),
        visit.questions.tables(
            groups=["policy,rule,backend", "rule,kind"],
            wanted=({"answers", "costs"}, {"counts", "costs"}),
            **question,
        ),
    )
    query = parse_query(tz=visit.tz, now=now, **period.moments)
    async with engine.connect() as connection:
        sample = await _sample(connection, query.since_us, query.until_us)
        scores = await _scores(connection, query.since_us)
    predicted, curve = await asyncio.to_thread(_told, sample)
    total = sum(row["requests"] for row in by_rule)
    shares = [
        {
            **row,
            "share": row["requests"] / total if total else 0.0,
            "predicted": predicted.get((row["rule"], row["backend"])),
            "score": scores.get((row["rule"], row["backend"])),
        }
        for row in sorted(by_rule, key=lambda row: -row["requests"])
    ]
    return {
        "shares": shares,
        "period": period,
        "presets": PRESETS,
        "sampled": len(sample),
        "cascades": _cascades(by_kind),
        "overrides": [in_full(one) for one in visit.parts.overrides.current()],
        "policies": visit.parts.book.names(),
        "backends": [b.name for b in visit.parts.settings.backends if b.kind != "encoder"],
        "policy": (visit.parts.overrides.effect.policy or visit.parts.book.get()).ref,
        "charts": {
            "shares": _shares(shares),
            "over-time": _over_time(stepped, period, visit.tz, now),
            "curve": Chart(
                name="curve",
                title="What quality costs",
                kind="curve",
                columns=("$ per 1,000 requests", "Best mix", "One backend", "As decided", "Point"),
                rows=curve,
                note="Predicted quality (0 to 1) over expected $ per 1,000 requests, of the newest "
                "decisions.",
            ),
        },
    }


def _shares(rows: list[dict[str, Any]]) -> Chart:
    columns = ("Policy · rule · backend", "Requests", "Share", "Predicted quality", "Score", "$")
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        name = " · ".join(str(row[key] or "–") for key in ("policy", "rule", "backend"))
        score = None if row["score"] is None else row["score"]["mean"]
        predicted = None if row["predicted"] is None else row["predicted"]["mean"]
        cells.append((name, row["requests"], row["share"], predicted, score, row["cost_usd"]))
    return Chart(name="shares", title="Shares", kind="bars", columns=columns, rows=cells)


def _over_time(rows: list[dict[str, Any]], period: Any, tz: str, now: Any) -> Chart:
    at = {said: unix_s for unix_s, said in steps(period, tz, now)}
    cells = {
        (at[row[period.step]], row["backend"] or "nobody"): float(row["requests"])
        for row in rows
        if row[period.step] in at
    }
    series, table = over_time(cells, at.values())
    title = f"Requests per {period.step} by backend"
    columns = (period.step.capitalize(), *series)
    return Chart(name="over-time", title=title, kind="stack", columns=columns, rows=table)


async def _sample(connection: "AsyncConnection", since_us: int, until_us: int) -> list[Any]:
    """(rule, backend, candidates) of the newest decisions."""
    at = requests.c.started_us
    found = await connection.execute(
        select(requests.c.rule, requests.c.backend, cast(requests.c.candidates, Text))
        .where(at >= since_us, at < until_us)
        .order_by(at.desc())
        .limit(SAMPLED)
    )
    return list(found.all())


async def _scores(
    connection: "AsyncConnection", since_us: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """Mean feedback by (rule, backend), of the newest opinions."""
    newest = (
        select(feedback.c.request_id, feedback.c.score)
        .where(feedback.c.at_us >= since_us)
        .order_by(feedback.c.at_us.desc())
        .limit(OPINIONS)
        .subquery()
    )
    found = await connection.execute(
        select(requests.c.rule, requests.c.backend, func.avg(newest.c.score), func.count())
        .join_from(newest, requests, requests.c.request_id == newest.c.request_id)
        .group_by(requests.c.rule, requests.c.backend)
    )
    return {(rule, backend): {"mean": mean, "count": n} for rule, backend, mean, n in found}


def _told(
    sample: list[Any],
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[tuple[Cell, ...]]]:
    """Mean predicted quality by (rule, backend), and the curve's rows."""
    sums: dict[tuple[str, str], list[float]] = {}
    choices: list[dict[str, CandidateRecord]] = []
    firsts: list[str] = []
    for rule, backend, text in sample:
        candidates = _candidates(text)
        known = {c.backend: c for c in candidates if c.quality is not None}
        if backend in known:
            sums.setdefault((rule, backend), []).append(known[backend].quality or 0.0)
        known = {name: c for name, c in known.items() if c.cost_nano_usd is not None}
        if len(known) > 1 and candidates[0].backend in known:
            choices.append(known)
            firsts.append(candidates[0].backend)
    means = {key: {"mean": sum(v) / len(v), "count": len(v)} for key, v in sums.items()}
    return means, _curve(choices, firsts)


def _curve(choices: list[dict[str, CandidateRecord]], firsts: list[str]) -> list[tuple[Cell, ...]]:
    """Greatest quality − λ·cost for rising λ; each backend alone; and what was decided.

    Costs are dollars per 1,000 requests.
    """
    if not choices:
        return []
    names = sorted({name for known in choices for name in known})
    cost = np.full((len(choices), len(names)), np.inf)
    quality = np.full((len(choices), len(names)), -np.inf)
    for row, known in enumerate(choices):
        for column, name in enumerate(names):
            if name in known:
                cost[row, column] = (known[name].cost_nano_usd or 0) / 1e6
                quality[row, column] = known[name].quality
    pick = np.arange(len(choices))
    rows: list[tuple[Cell, ...]] = []
    finite = cost[np.isfinite(cost)]
    scale = float(finite.max()) or 1.0
    seen: set[tuple[float, float]] = set()
    for price in (0.0, *np.geomspace(1e-3, 1e3, POINTS)):
        with np.errstate(invalid="ignore"):
            merit = np.where(np.isfinite(cost), quality - price * cost / scale, -np.inf)
        best = merit.argmax(axis=1)
        point = _point(cost, quality, pick, best)
        if point not in seen:
            seen.add(point)
            rows.append((point[0], point[1], None, None, "best mix"))
    for column, name in enumerate(names):
        if np.isfinite(cost[:, column]).all():
            alone = _point(cost, quality, pick, np.full(len(choices), column))
            rows.append((alone[0], None, alone[1], None, name))
    decided = np.array([names.index(first) for first in firsts])
    point = _point(cost, quality, pick, decided)
    rows.append((point[0], None, None, point[1], "as decided"))
    return sorted(rows, key=lambda row: float(row[0] or 0))


def _point(cost: Any, quality: Any, rows: Any, columns: Any) -> tuple[float, float]:
    """(mean cost, mean quality) of one choice per row."""
    return round(float(cost[rows, columns].mean()), 9), round(
        float(quality[rows, columns].mean()), 5
    )


def _cascades(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By rule: requests of which a smaller answer was thrown away, and what judging cost."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] not in ("rung", "judge", "answer"):
            continue
        nothing: dict[str, Any] = {"answer": None, "rung": None, "judge": None}
        line = found.setdefault(row["rule"], {"rule": row["rule"], **nothing})
        line[row["kind"]] = row
    cascades = [line for line in found.values() if line["rung"] or line["judge"]]
    for line in cascades:
        asked = line["answer"]["requests"] if line["answer"] else 0
        line["escalated"] = line["rung"]["requests"] if line["rung"] else 0
        line["requests"] = max(asked, line["escalated"])
        line["share"] = line["escalated"] / line["requests"] if line["requests"] else 0.0
    return cascades
