"""What reused answers avoided, and what was really saved; two figures that are easily confused.

Avoided is marginal: what the reused answers would have cost again, less what it took to know that
they may be reused and that cheaper models suffice (encoder, judges, audits, rungs that lost). On
machines paid by the hour that saves nothing by itself: an idle machine costs what a busy one does.
Really saved is what `[reports] baseline_machines` would have cost in the same hours, less what the
machines did cost, and less what went to others beside them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from gateway.ledger.machine_costs import MachineCost, configured
from gateway.ledger.machine_prices import changes_us, usd_per_hour
from gateway.ledger.money import usd_text
from gateway.ledger.pricing import machine_cost
from gateway.ledger.report_query import ReportQuery
from gateway.settings import Settings

_FOR_SAVING = ("encoder", "judge", "audit", "rung")
"""Kinds of charges that exist only because answers are reused or cascaded."""
_US = 1_000_000


class Booked(Struct, frozen=True, kw_only=True):
    """Charges of one kind, nano-dollars."""

    cost: int
    outside: int
    """Of that, to backends with prices of their own."""


def savings(
    settings: Settings,
    query: ReportQuery,
    machines: Sequence[MachineCost],
    avoided: int,
    by_kind: Mapping[str, Booked],
) -> dict[str, Any]:
    """As JSON; `really_saved_usd` is None without a baseline or a begin of the period."""
    spent = {kind: by_kind[kind].cost for kind in _FOR_SAVING if kind in by_kind}
    baseline = _baseline(settings, query)
    cost = sum(machine.cost for machine in machines)
    outside = sum(booked.outside for booked in by_kind.values())
    return {
        "avoided_usd": usd_text(avoided),
        "spent_on_saving_usd": {kind: usd_text(nano) for kind, nano in spent.items()},
        "net_avoided_usd": usd_text(avoided - sum(spent.values())),
        "baseline_cost_usd": None if baseline is None else usd_text(baseline),
        "outside_cost_usd": usd_text(outside),
        "really_saved_usd": None if baseline is None else usd_text(baseline - cost - outside),
    }


def _baseline(settings: Settings, query: ReportQuery) -> int | None:
    """What the baseline's machines cost from the period's begin to its end, without a pause."""
    counts = settings.reports.baseline_machines
    if not counts or query.since is None:
        return None
    total = 0
    for machine in configured(settings):
        count = counts.get(machine.name)
        if count is None:
            continue
        cuts = [query.since_us, *changes_us(machine, query.since_us, query.until_us)]
        for begin_us, end_us in zip(cuts, [*cuts[1:], query.until_us], strict=True):
            price = usd_per_hour(machine, begin_us / _US) * count
            total += machine_cost((end_us - begin_us) * 1000, price)
    return total
