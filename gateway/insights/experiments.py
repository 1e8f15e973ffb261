"""Experiments out of the ledger: what each arm cost, how long it took, how good callers found it.

A request belongs to the arm that was chosen for it, whoever answered in the end: else an arm that
fails would hand its hard cases to the other. Requests of one user or conversation bear one draw and
stick to one arm, so the interval counts draws, not requests: a ratio of sums over clusters.

Source: Deng, Knoblich, Lu 2018, "Applying the Delta Method in Metric Analytics", §4.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import Text, cast, func, select

from gateway.ledger.money import usd_text
from gateway.ledger.tables import feedback, requests, shadows

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_Z95 = 1.96


class _Named(Struct, frozen=True, gc=False):
    """Of a candidate, only who it is."""

    backend: str


_first = msgspec.json.Decoder(tuple[_Named, ...])


class Mean(Struct, frozen=True, kw_only=True):
    """A mean over requests with its 95 % interval over clusters."""

    value: float
    error: float
    """Its standard error; infinite with fewer than two clusters."""
    n: int
    clusters: int

    def shown(self) -> dict[str, Any]:
        """For JSON; an interval that nobody knows is null."""
        known = math.isfinite(self.error)
        return {
            "value": self.value,
            "low": self.value - _Z95 * self.error if known else None,
            "high": self.value + _Z95 * self.error if known else None,
            "n": self.n,
            "draws": self.clusters,
        }


def mean_of(values: Iterable[tuple[float, float]]) -> Mean | None:
    """The mean of (cluster, value) pairs; None without any."""
    sums: dict[float, tuple[float, int]] = {}
    for cluster, value in values:
        total, count = sums.get(cluster, (0.0, 0))
        sums[cluster] = (total + value, count + 1)
    n, groups = sum(count for _, count in sums.values()), len(sums)
    if not n:
        return None
    mean = sum(total for total, _ in sums.values()) / n
    if groups < 2:
        return Mean(value=mean, error=math.inf, n=n, clusters=groups)
    off = sum((total - mean * count) ** 2 for total, count in sums.values())
    error = math.sqrt(groups / (groups - 1) * off) / n
    return Mean(value=mean, error=error, n=n, clusters=groups)


class Difference(Struct, frozen=True, kw_only=True):
    """One arm's mean less another's; the arms' clusters are not the same."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, mean: Mean | None, base: Mean | None) -> "Difference | None":
        """None where one of them has no interval."""
        if mean is None or base is None or not math.isfinite(mean.error + base.error):
            return None
        value = mean.value - base.value
        off = _Z95 * math.hypot(mean.error, base.error)
        return cls(value=value, low=value - off, high=value + off)


class _Row(Struct, frozen=True):
    """What is compared of one request."""

    arm: str
    draw: float
    ok: bool
    nano_usd: int
    seconds: float
    score: float | None


async def experiment(
    connection: "AsyncConnection",
    *,
    policy: str,
    rule: str,
    since_us: int,
    until_us: int,
    baseline: str | None = None,
) -> dict[str, Any]:
    """The report of a rule's arms, and of the copies that its requests sent.

    Args:
        baseline: the arm that others are compared with; None: the one with the most requests.

    Raises:
        LookupError: no request was decided by that rule then, or the baseline is no arm.
    """
    rows = await _rows(connection, policy, rule, since_us, until_us)
    if not rows:
        raise LookupError(f"no request was decided by rule {rule!r} of {policy!r} in that period")
    arms: dict[str, list[_Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    most = max(arms, key=lambda arm: len(arms[arm]))
    base = baseline or most
    if base not in arms:
        raise LookupError(f"baseline {base!r} is no arm; there are: {', '.join(sorted(arms))}")
    means = {arm: _means(found) for arm, found in arms.items()}
    return {
        "policy": policy,
        "rule": rule,
        "baseline": base,
        "arms": [
            _arm(arm, arms[arm], means[arm], None if arm == base else means[base])
            for arm in sorted(arms, key=lambda arm: (arm != base, arm))
        ],
        "shadows": await _shadows(connection, policy, rule, since_us, until_us),
    }


async def _rows(
    connection: "AsyncConnection", policy: str, rule: str, since_us: int, until_us: int
) -> list[_Row]:
    scores = (
        select(feedback.c.request_id, func.avg(feedback.c.score).label("score"))
        .group_by(feedback.c.request_id)
        .subquery()
    )
    r = requests.c
    wanted = (
        select(
            cast(r.candidates, Text), r.draw, r.outcome, r.cost_nano_usd, r.duration_ms,
            scores.c.score,
        )
        .outerjoin(scores, scores.c.request_id == r.request_id)
        .where(*_inside(policy, rule, since_us, until_us))
    )  # fmt: skip
    found = []
    for candidates, draw, outcome, cost, ms, score in (await connection.execute(wanted)).all():
        names = _first.decode(candidates)
        if names:
            found.append(_Row(names[0].backend, draw, outcome == "ok", cost, ms / 1e3, score))
    return found


def _inside(policy: str, rule: str, since_us: int, until_us: int) -> tuple[Any, ...]:
    """Requests that the rule decided, and that were not stopped by anything before a backend."""
    r = requests.c
    return (
        r.started_us >= since_us,
        r.started_us < until_us,
        r.policy == policy,
        r.rule == rule,
        r.outcome.in_(("ok", "error")),
    )


def _means(rows: list[_Row]) -> Mapping[str, Mean | None]:
    return {
        "cost_usd": mean_of((row.draw, row.nano_usd / 1e9) for row in rows),
        "seconds": mean_of((row.draw, row.seconds) for row in rows if row.ok),
        "errors": mean_of((row.draw, float(not row.ok)) for row in rows),
        "feedback": mean_of((row.draw, row.score) for row in rows if row.score is not None),
    }


def _arm(
    name: str,
    rows: list[_Row],
    means: Mapping[str, Mean | None],
    base: Mapping[str, Mean | None] | None,
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "arm": name,
        "requests": len(rows),
        "draws": len({row.draw for row in rows}),
        "total_cost_usd": usd_text(sum(row.nano_usd for row in rows)),
    }
    told |= {figure: mean and mean.shown() for figure, mean in means.items()}
    if base is not None:
        differences = {figure: Difference.of(means[figure], base[figure]) for figure in means}
        told["against_baseline"] = msgspec.to_builtins(differences)
    return told


async def _shadows(
    connection: "AsyncConnection", policy: str, rule: str, since_us: int, until_us: int
) -> list[dict[str, Any]]:
    """Per backend that got copies: how many, how they ended, what they cost beside the answers."""
    s, r = shadows.c, requests.c
    wanted = (
        select(
            s.backend, s.error, s.ms, s.completion_tokens, s.cost_nano_usd, s.same, r.draw,
            r.cost_nano_usd.label("answer_nano_usd"),
        )
        .join(requests, r.request_id == s.request_id)
        .where(*_inside(policy, rule, since_us, until_us))
    )  # fmt: skip
    by_backend: dict[str, list[Any]] = {}
    for row in (await connection.execute(wanted)).all():
        by_backend.setdefault(row.backend, []).append(row)
    return [
        {
            "backend": backend,
            "copies": len(rows),
            "errors": sum(row.error is not None for row in rows),
            "seconds": _shown((row.draw, row.ms / 1e3) for row in rows if row.error is None),
            "cost_usd": _shown((row.draw, row.cost_nano_usd / 1e9) for row in rows),
            "answers_cost_usd": _shown((row.draw, row.answer_nano_usd / 1e9) for row in rows),
            "same_answer": _shown((row.draw, float(row.same)) for row in rows if row.error is None),
        }
        for backend, rows in sorted(by_backend.items())
    ]


def _shown(values: Iterable[tuple[float, float]]) -> dict[str, Any] | None:
    mean = mean_of(values)
    return None if mean is None else mean.shown()
