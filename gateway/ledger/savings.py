"""What was saved, figures that are easily confused, so each stands apart with what it assumes.

Avoided is marginal: what the reused answers would have cost again, less what it took to know that
they may be reused and that cheaper models suffice (encoder, judges, audits, rungs that lost). On
machines paid by the hour that saves nothing by itself: an idle machine costs what a busy one does.
Really saved is what `[reports] baseline_machines` would have cost in the same hours, less what the
machines did cost, and less what went to others beside them.

Against a price: the same requests, reused answers too, at somebody's rates per token; what they
cost here includes the idle hours, which others have in their price. Against the largest: the same
requests, all answered by one backend; both sides are marginal, for it idles as others do.
"""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from msgspec import Struct

from backends.contract import Usage
from gateway.ledger.machine_costs import MachineCost, configured
from gateway.ledger.machine_prices import changes_us, usd_per_hour
from gateway.ledger.money import EXACT, to_usd, usd_text
from gateway.ledger.outside_prices import OutsidePrice
from gateway.ledger.pricing import machine_cost, token_cost
from gateway.ledger.report_query import ReportQuery
from gateway.settings import Settings

_FOR_SAVING = ("encoder", "judge", "audit", "rung")
"""Kinds of charges that exist only because answers are reused or cascaded."""
_US = 1_000_000
_NS_PER_HOUR = 3_600_000_000_000


_ANSWERS = ("answer", "hedge", "retry", "rung")
"""Kinds whose tokens say what a token costs at a backend."""
_MTOK = Decimal(1_000_000)


class Booked(Struct, frozen=True, kw_only=True):
    """Charges of one kind at one backend, nano-dollars."""

    kind: str
    backend: str
    cost: int
    tokens: int
    """Of prompts and answers."""
    outside: int
    """Of the cost, to backends with prices of their own."""


class Served(Struct, frozen=True, kw_only=True):
    """The requests that the report is about, reused answers too."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    cost: int
    """What they caused, nano-dollars."""
    idle: int
    """Their share of what the machines cost beside that."""


def savings(
    settings: Settings,
    query: ReportQuery,
    machines: Sequence[MachineCost],
    avoided: int,
    booked: Sequence[Booked],
    begun_us: int | None,
) -> dict[str, Any]:
    """As JSON; `really_saved_usd` is None without a baseline, or where nothing ever ran.

    Args:
        avoided: nano-dollars.
        begun_us: when the ledger began: before, no baseline's machine would have run either.
    """
    spent: dict[str, int] = {}
    for one in booked:
        if one.kind in _FOR_SAVING:
            spent[one.kind] = spent.get(one.kind, 0) + one.cost
    baseline = _baseline(settings, query, begun_us)
    cost = sum(machine.cost for machine in machines)
    outside = sum(one.outside for one in booked)
    return {
        "avoided_usd": usd_text(avoided),
        "spent_on_saving_usd": {kind: usd_text(nano) for kind, nano in sorted(spent.items())},
        "net_avoided_usd": usd_text(avoided - sum(spent.values())),
        "baseline_cost_usd": None if baseline is None else usd_text(baseline.cost),
        "outside_cost_usd": usd_text(outside),
        "really_saved_usd": None if baseline is None else usd_text(baseline.cost - cost - outside),
        "really_saved_hours": None if baseline is None else _hours(
            baseline.ns - sum(machine.run_ns for machine in machines)
        ),
    }  # fmt: skip


def against_price(price: OutsidePrice, served: Served) -> dict[str, Any]:
    """What the same requests would have cost at an outside price, as JSON."""
    usage = Usage(
        prompt_tokens=served.prompt_tokens,
        cached_tokens=served.cached_prompt_tokens,
        completion_tokens=served.completion_tokens,
    )
    return _beside(
        price.name,
        token_cost(price.rates, usage),
        served.cost + served.idle,
        f"every request as one call to {price.words}, reused answers too, with as many tokens; "
        "prompt tokens that a prefix cache had count as cached; here with idle hours.",
    )


def against_largest(
    settings: Settings, booked: Sequence[Booked], served: Served
) -> dict[str, Any] | None:
    """What one backend would have taken for all of them; None: it answered nothing, so what a
    token costs there is not known."""
    sums: dict[str, tuple[int, int]] = {}
    for one in booked:
        if one.kind in _ANSWERS:
            cost, tokens = sums.get(one.backend, (0, 0))
            sums[one.backend] = cost + one.cost, tokens + one.tokens
    known = {name: sum_ for name, sum_ in sums.items() if sum_[0] > 0 and sum_[1] > 0}
    chosen = settings.reports.largest
    why = "[reports] largest" if chosen else "the dearest per token"
    if chosen is None:
        by_price = sorted(known, key=lambda name: (-Fraction(*known[name]), name))
        chosen = by_price[0] if by_price else ""
    if chosen not in known:
        return None
    cost, tokens = known[chosen]
    asked = served.prompt_tokens + served.completion_tokens
    per_mtok = EXACT.divide(EXACT.multiply(to_usd(cost), _MTOK), Decimal(tokens))
    return _beside(
        chosen,
        cost * asked // tokens,
        served.cost,
        f"every request answered by {chosen} ({why}), reused answers too, at the "
        f"${per_mtok:.4f} per 1M tokens that its own answers cost in this period; "
        "idle hours on neither side.",
    )


def _beside(name: str, would: int, cost: int, assumption: str) -> dict[str, Any]:
    return {
        "name": name,
        "would_cost_usd": usd_text(would),
        "cost_usd": usd_text(cost),
        "saved_usd": usd_text(would - cost),
        "assumption": assumption,
    }


class _Baseline(Struct, frozen=True):
    cost: int
    ns: int


def _hours(ns: int) -> str:
    return format((Decimal(ns) / _NS_PER_HOUR).quantize(Decimal("0.01")), "f")


def _baseline(settings: Settings, query: ReportQuery, begun_us: int | None) -> _Baseline | None:
    """What the baseline's machines cost from the period's begin to its end, without a pause."""
    counts = settings.reports.baseline_machines
    if not counts or begun_us is None:
        return None
    total, ns = 0, 0
    since_us = min(max(query.since_us, begun_us), query.until_us)
    for machine in configured(settings):
        count = counts.get(machine.name)
        if count is None:
            continue
        cuts = [since_us, *changes_us(machine, since_us, query.until_us)]
        for begin_us, end_us in zip(cuts, [*cuts[1:], query.until_us], strict=True):
            price = usd_per_hour(machine, begin_us / _US) * count
            total += machine_cost((end_us - begin_us) * 1000, price)
            ns += int((end_us - begin_us) * 1000 * count)
    return _Baseline(total, ns)
