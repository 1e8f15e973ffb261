"""The ledger's past requests as columns that a policy can decide on again."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from sqlalchemy import Text, cast, func, select

from gateway.ledger.pricing import CostEstimator
from gateway.ledger.records import ChargeRecord, DecidedOn, RequestRecord, Verdict
from gateway.ledger.subjects import names_of
from gateway.ledger.tables import charges, feedback, requests
from gateway.routing.columns import Table
from gateway.routing.forecasts import Forecasts
from policies.model import BackendCard

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Floats = NDArray[np.float64]
HITS = ("exact", "semantic")
SEEN_OFTEN = 5
"""From so many answers on a backend's own mean stands for its answers to a task."""
RECENT = 2_000
"""Answers that a new process learns from."""
_MTOK = 1_000_000
_PLAIN = (
    "request_id", "endpoint", "model", "team", "key", "user", "started_us", "outcome", "cache",
    "policy", "task", "difficulty", "language", "prompt_tokens_estimate", "turns", "backend",
    "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "duration_ms", "draw",
    "probability", "cost_nano_usd",
)  # fmt: skip
_JSON = ("tags", "candidates", "decided_on")


class Rung(Struct, frozen=True):
    """One answer of a cascade, and what its judge said."""

    backend: str
    judge: str
    """Empty: it was the last one."""
    p_good: float | None
    """None: the judge could not say."""
    gain: float | None


class _Named(Struct, frozen=True, gc=False):
    """Of a candidate, only who it is."""

    backend: str


class _Judged(Struct, frozen=True, gc=False):
    """Of an attempt, what cascades leave there."""

    backend: str
    verdict: Verdict | None = None


_attempts = msgspec.json.Decoder(tuple[_Judged, ...])
_first = msgspec.json.Decoder(tuple[_Named, ...])
_told = msgspec.json.Decoder(DecidedOn)
_tags = msgspec.json.Decoder(dict[str, str])


class Past(Struct, frozen=True, kw_only=True):
    """N requests on which a policy decided."""

    columns: Mapping[str, Sequence[Any]]
    """The ledger's, by name; `tags` and `decided_on` decoded, `first`: the first candidate."""
    names: Mapping[str, str]
    """Ids of teams and users → their names."""
    rewards: Floats
    """[N]: mean score by feedback; NaN without."""
    rates: Sequence[ChargeRecord]
    """One charge per backend with all that it used in the period."""
    rungs: Mapping[int, tuple[Rung, ...]] = msgspec.field(default_factory=dict)
    """By row: of requests that cascades answered, what answered and was judged, in order."""
    skipped: int
    """Rows on which no policy decided, or from before that was recorded."""

    def __len__(self) -> int:
        return len(self.columns["request_id"])


async def read_past(connection: "AsyncConnection", *, since_us: int, until_us: int) -> Past:
    """All requests of a half-open period, the oldest first."""
    inside = (requests.c.started_us >= since_us, requests.c.started_us < until_us)
    wanted = select(
        *(requests.c[name] for name in _PLAIN),
        *(cast(requests.c[name], Text) for name in _JSON),  # decoded below, faster
    )
    told = (await connection.execute(
        wanted.where(*inside, requests.c.decided_on.is_not(None)).order_by(requests.c.started_us)
    )).all()  # fmt: skip
    total = (
        await connection.execute(select(func.count()).select_from(requests).where(*inside))
    ).scalar_one()
    values = list(zip(*told, strict=True)) or [()] * (len(_PLAIN) + len(_JSON))
    columns: dict[str, Sequence[Any]] = dict(zip((*_PLAIN, *_JSON), values, strict=True))
    tags = {text: tuple(_tags.decode(text).items()) for text in set(columns["tags"])}
    columns["tags"] = [tags[text] for text in columns["tags"]]
    columns["decided_on"] = [_told.decode(text) for text in columns["decided_on"]]
    columns["first"] = [
        found[0].backend if (found := _first.decode(text)) else None
        for text in columns.pop("candidates")
    ]
    ids = {one for one in (*columns["team"], *columns["user"]) if one is not None}
    return Past(
        columns=columns,
        names=await names_of(connection, ids),
        rewards=await _rewards(connection, columns["request_id"], since_us),
        rates=await _rates(connection, since_us, until_us),
        rungs=await _rungs(connection, columns["request_id"], inside),
        skipped=total - len(told),
    )


async def _rewards(connection: "AsyncConnection", ids: Sequence[str], since_us: int) -> Floats:
    wanted = (
        select(feedback.c.request_id, func.avg(feedback.c.score))
        .where(feedback.c.at_us >= since_us)
        .group_by(feedback.c.request_id)
    )
    found = (await connection.execute(wanted)).all()
    scores: dict[str, float] = {row[0]: row[1] for row in found}
    return np.array([scores.get(one, np.nan) for one in ids], dtype=np.float64)


async def _rungs(
    connection: "AsyncConnection", ids: Sequence[str], inside: Sequence[Any]
) -> dict[int, tuple[Rung, ...]]:
    wanted = select(requests.c.request_id, cast(requests.c.attempts, Text)).where(
        *inside, cast(requests.c.attempts, Text).contains('"judge"')
    )
    told = (await connection.execute(wanted)).all()
    if not told:
        return {}
    place = {one: row for row, one in enumerate(ids)}
    return {
        place[one]: tuple(
            Rung(a.backend, a.verdict.judge, a.verdict.p_good, a.verdict.gain)
            for a in _attempts.decode(text)
            if a.verdict is not None
        )
        for one, text in told
        if one in place
    }


async def _rates(connection: "AsyncConnection", since_us: int, until_us: int) -> list[ChargeRecord]:
    names = (
        "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "prefill_ns", "machine_ns",
    )  # fmt: skip
    wanted = (
        select(charges.c.backend, *(func.sum(charges.c[name]) for name in names))
        .where(charges.c.at_us >= since_us, charges.c.at_us < until_us)
        .group_by(charges.c.backend)
    )
    return [
        replace(
            ChargeRecord(request_id="", seq=0, kind="answer", backend=backend, at=0.0),
            **{name: int(value) for name, value in zip(names, sums, strict=True)},
        )
        for backend, *sums in (await connection.execute(wanted)).all()
    ]


async def learn(
    connection: "AsyncConnection", forecasts: Forecasts, estimator: CostEstimator
) -> None:
    """Teach forecasts what the last answers took, so that a new process knows at once."""
    columns = (
        "request_id", "endpoint", "model", "started_us", "duration_ms", "ttft_ms", "outcome",
        "status", "cache", "task", "turns", "backend", "prompt_tokens", "cached_prompt_tokens",
        "completion_tokens",
    )  # fmt: skip
    wanted = (
        select(*(requests.c[name] for name in columns))
        .where(requests.c.outcome == "ok", requests.c.cache.not_in(HITS))
        .order_by(requests.c.started_us.desc())
        .limit(RECENT)
    )
    found = (await connection.execute(wanted)).all()
    for row in reversed(found):
        values = dict(zip(columns, row, strict=True))
        values["started_at"] = values.pop("started_us") / 1e6
        forecasts.observe(RequestRecord(**values))
    if found:
        oldest_us = found[-1][columns.index("started_us")]
        for charge in await _rates(connection, oldest_us, 1 << 62):
            estimator.observe(charge)


def table_of(past: Past, cards: Mapping[str, BackendCard], estimator: CostEstimator) -> Table:
    """The past as columns over today's backends, with costs at today's prices."""
    columns = past.columns
    told: Sequence[DecidedOn] = columns["decided_on"]
    tokens = answer_tokens(past, cards)
    return Table.of(
        cards,
        {
            **{name: columns[name] for name in ("task", "key", "model", "language", "endpoint")},
            "team": [past.names.get(one, one) for one in columns["team"]],
            "user": [one and past.names.get(one, one) for one in columns["user"]],
            "tags": columns["tags"],
            "wants": [one.wants for one in told],
            "needs": [one.needs for one in told],
            "allowed": [one.allowed for one in told],
        },
        {
            "difficulty": columns["difficulty"],
            "prompt_tokens": columns["prompt_tokens_estimate"],
            "turns": columns["turns"],
            "draw": columns["draw"],
            "prompt_tokens_bound": [one.prompt_tokens_bound for one in told],
            "max_tokens": [one.max_tokens for one in told],
            "budget_left": [one.budget_left for one in told],
            "day_spent_usd": [0.0] * len(told),
            "day_requests": [0.0] * len(told),
        },
        {
            "quality": [one.quality for one in told],
            "load": [one.loads for one in told],
            "exact": [one.prompt_tokens_exact for one in told],
        },
        started_us=columns["started_us"],
        down=[one.down for one in told],
        costs=expected_costs(past, cards, estimator, tokens),
        warm=[one.warm and one.warm[0] for one in told],
        latencies=by_task(past, cards, "duration_ms") / 1e3,
    )


def answer_tokens(past: Past, cards: Mapping[str, BackendCard]) -> Floats:
    """[N, K]: a backend's mean on the task where it was seen often, else what the row had."""
    own = np.array(past.columns["completion_tokens"], dtype=np.float64)
    tokens = by_task(past, cards, "completion_tokens")
    tokens = np.where(np.isnan(tokens), own[:, None], tokens)
    limit = [one.max_tokens for one in past.columns["decided_on"]]
    return np.fmin(tokens, np.array(limit, dtype=np.float64)[:, None])


def by_task(past: Past, cards: Mapping[str, BackendCard], column: str) -> Floats:
    """[N, K]: the mean of a column over a backend's generated answers to the row's task."""
    columns = past.columns
    values = np.array(columns[column], dtype=np.float64)
    tasks, task = np.unique(np.array(columns["task"], dtype=str), return_inverse=True)
    made = np.array(
        [o == "ok" and c not in HITS for o, c in zip(columns["outcome"], columns["cache"],
                                                       strict=True)], dtype=bool,
    )  # fmt: skip
    backend = np.array([one or "" for one in columns["backend"]], dtype=str)
    found = np.full((len(tasks), len(cards)), np.nan)
    for place, name in enumerate(cards):
        mine = made & (backend == name)
        count = np.bincount(task[mine], minlength=len(tasks))
        total = np.bincount(task[mine], weights=values[mine], minlength=len(tasks))
        often = count >= SEEN_OFTEN
        found[often, place] = total[often] / count[often]
    return np.asarray(found[task])


def expected_costs(
    past: Past, cards: Mapping[str, BackendCard], estimator: CostEstimator, tokens: Floats
) -> Floats:
    """[N, K] nano-dollars at today's prices and the period's speed and cached prefixes."""
    cached = {}
    for charge in past.rates:
        estimator.observe(charge)
        cached[charge.backend] = charge.cached_prompt_tokens / max(charge.prompt_tokens, 1)
    prompt = np.array(past.columns["prompt_tokens"], dtype=np.float64)
    guess = np.array(past.columns["prompt_tokens_estimate"], dtype=np.float64)
    prompt = np.where(prompt > 0, prompt, guess)
    costs = np.empty_like(tokens)
    warm = [one.warm or ("", 0) for one in past.columns["decided_on"]]
    held = np.array([tokens for _, tokens in warm], dtype=np.float64) / np.maximum(prompt, 1)
    for place, name in enumerate(cards):
        here = np.array([at == name for at, _ in warm], dtype=bool)
        fresh = estimator.expected(name, _MTOK, 0) / _MTOK
        reused = estimator.expected(name, _MTOK, 0, _MTOK) / _MTOK
        share = np.where(here, np.minimum(held, 1.0), cached.get(name, 0.0))
        each = fresh * (1 - share) + reused * share
        costs[:, place] = prompt * each + tokens[:, place] * (
            estimator.expected(name, 0, _MTOK) / _MTOK
        )
    return costs
