"""Hypothesis: any valid policy, any facts."""

from datetime import UTC, timedelta, timezone
from typing import get_args

from hypothesis import strategies as st

from policies.cascade import JUDGES
from policies.model import (
    Accept,
    BackendCard,
    BackendRange,
    BudgetState,
    Day,
    Estimate,
    Facts,
    Hours,
    Objective,
    Policy,
    Range,
    RequestFeatures,
    Route,
    Rule,
    Sticky,
    Task,
    Warm,
    When,
)

NAMES = ("nano", "small", "base", "outside", "tiny")
WORDS = ("a", "b", "c")
names = st.sampled_from(NAMES)
words = st.sampled_from(WORDS)
numbers = st.floats(-1, 5, allow_nan=False) | st.integers(-1, 5).map(float)
tasks = st.sampled_from(get_args(Task))
languages = st.sampled_from(("en", "de", "fr"))
wants = st.sampled_from(("json", "tools", "logprobs"))
targets = names | names.map("backend:{}".format) | st.just("*")


def lists(of: st.SearchStrategy[str]) -> st.SearchStrategy[list[str] | None]:
    return st.none() | st.lists(of, min_size=1, max_size=3)


@st.composite
def limits(draw: st.DrawFn) -> dict[str, float | None]:
    low = draw(st.none() | numbers)
    above = draw(st.none() | st.floats(0.01, 3))
    if above is None:
        return {"min": draw(numbers) if low is None else low, "max": None}
    return {"min": low, "max": (low or 0.0) + above}


ranges = st.none() | limits().map(lambda kw: Range(**kw))
backend_ranges = st.none() | st.builds(
    lambda b, kw: BackendRange(backend=b, **kw), targets, limits()
)
clocks = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
hours = st.builds(
    lambda f, t, tz, days: Hours(from_=f, to=t, tz=tz, days=days),
    clocks,
    clocks,
    st.sampled_from(("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns")),
    st.none() | st.lists(st.sampled_from(get_args(Day)), min_size=1, max_size=7),
)
whens = st.builds(
    When,
    task=lists(tasks),
    team=lists(words),
    key=lists(words),
    user=lists(words),
    model=lists(names),
    language=lists(languages),
    difficulty=ranges,
    prompt_tokens=ranges,
    turns=ranges,
    budget_left=ranges,
    load=backend_ranges,
    quality=backend_ranges,
    tags=st.none()
    | st.dictionaries(words, st.lists(words, min_size=1, max_size=2), min_size=1, max_size=2),
    wants=lists(wants),
    hours=st.none() | hours,
)
weights = st.floats(0.01, 100)
splits = st.dictionaries(targets, weights, min_size=1, max_size=3)

ladders = st.lists(names, min_size=2, max_size=3, unique=True)
accepts = st.none() | st.builds(
    Accept,
    judge=st.sampled_from((*JUDGES, "backend:base")),
    min=st.floats(0, 1),
    skip_gain=st.sampled_from((0.0, 0.3, 1.0)),
    lambda_cost_usd=st.sampled_from((0.0, 1e3)),
    skip_lambda_cost_usd=st.sampled_from((None, 0.0, 1e3, 1e6)),
)


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    among = draw(st.lists(targets, min_size=1, max_size=3))
    if draw(st.booleans()):
        return Objective(minimise="cost", min_quality=draw(st.floats(0, 1)), among=among)
    cap = draw(st.none() | st.floats(0, 0.01))
    return Objective(
        maximise="quality",
        max_cost_usd=cap,
        per="request" if cap is None else draw(st.sampled_from(("request", "day"))),
        lambda_cost_usd=draw(st.sampled_from((0.0, 1.0, 1000.0))),
        mu_latency_s=draw(st.sampled_from((0.0, 0.1))),
        among=among,
    )


@st.composite
def actions(draw: st.DrawFn) -> dict[str, object]:
    kind = draw(st.sampled_from(("route", "split", "cascade", "objective", "deny")))
    if kind == "deny":
        return {"deny": "because"}
    kinds = {"route": targets, "split": splits, "cascade": ladders, "objective": objectives()}
    return {
        kind: draw(kinds[kind]),
        "accept": draw(accepts) if kind == "cascade" else None,
        "fallbacks": draw(st.lists(targets, max_size=3)),
        "max_tokens": draw(st.none() | st.integers(1, 50)),
        "cache": draw(st.sampled_from((None, "off", "exact", "semantic"))),
        "shadow": draw(st.none() | targets),
    }


stickies = st.builds(Sticky, min_gain=st.floats(0, 1), headroom=st.floats(1, 5))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    count = draw(st.integers(0, 4))
    rules = [Rule(name=f"r{i}", when=draw(whens), **draw(actions())) for i in range(count)]
    sticky = draw(st.none() | stickies)
    return Policy(sticky=sticky, rules=rules, default=Route(**draw(actions())))


cards = st.dictionaries(
    names,
    st.builds(
        lambda tier, ready, load, context, accepts, embeds, price: {
            "tier": tier,
            "ready": ready,
            "load": load,
            "context_tokens": context,
            "accepts": accepts,
            "endpoints": frozenset({"embeddings"} if embeds else {"chat/completions"}),
            "usd_per_mtok": price,
        },
        names,
        st.booleans(),
        st.floats(0, 3),
        st.none() | st.integers(1, 4000),
        st.frozensets(wants),
        st.booleans(),
        st.none() | st.floats(0, 50),
    ),
    max_size=5,
).map(lambda d: {name: BackendCard(name=name, model="m", **kw) for name, kw in d.items()})
features = st.builds(
    RequestFeatures,
    task=tasks,
    difficulty=st.floats(0, 1),
    language=languages,
    prompt_tokens=st.integers(0, 5000),
    turns=st.integers(0, 9),
    wants=st.frozensets(wants),
    quality=st.dictionaries(names, st.floats(0, 1)),
)
estimates = st.builds(
    Estimate,
    cost_nano_usd=st.none() | st.integers(0, 10**7),
    latency_s=st.none() | st.floats(0, 60),
)
facts = st.builds(
    Facts,
    features=features,
    model=names,
    team=words,
    key=words,
    user=st.none() | words,
    tags=st.dictionaries(words, words, max_size=3),
    max_tokens=st.none() | st.integers(1, 5000),
    needs=st.frozensets(wants, max_size=1),
    prompt_tokens_bound=st.integers(0, 5000),
    prompt_tokens_exact=st.dictionaries(names, st.integers(0, 5000), max_size=2),
    endpoint=st.sampled_from(("chat/completions", "completions", "embeddings")),
    allowed=st.none() | st.frozensets(names),
    estimates=st.dictionaries(names, estimates),
    warm=st.none() | st.builds(Warm, backend=names, tokens=st.integers(0, 5000)),
)
budgets = st.builds(
    BudgetState,
    left=st.floats(0, 1),
    day_spent_usd=st.floats(0, 10),
    day_requests=st.integers(0, 10**6),
)
moments = (
    st.datetimes(
        timezones=st.sampled_from((UTC, timezone(timedelta(hours=5, minutes=30)))),
    )
    | st.datetimes()
)
draws = st.floats(0, 1, exclude_max=True)
__all__ = [
    "accepts",
    "actions",
    "budgets",
    "cards",
    "draws",
    "facts",
    "ladders",
    "moments",
    "policies",
    "whens",
]
