"""What the machines cost, and what of it served nobody; money in nano-dollars.

Measured nanoseconds × the price that held meanwhile. Nothing here knows of charges: what is left
when they are taken off is nobody's, and is printed as such.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from gateway.ledger.machine_prices import PricedMachine, priced
from gateway.ledger.machine_report import (
    Interval,
    MachineHours,
    add_up,
    measured_until_us,
    recorded_machines,
)
from gateway.ledger.money import usd_text
from gateway.ledger.pricing import machine_cost
from gateway.settings import Settings
from gateway.settings.prices import MachineSettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

CATEGORIES = ("idle", "startup", "loading", "lost_work")
"""What a machine costs beside its charges."""
_MEASURED = ("idle_ns", "startup_ns", "loading_ns", "lost_ns")
"""In the order of CATEGORIES."""
_MS_PER_HOUR = 3_600_000


class MachineCost(Struct, kw_only=True):
    """One machine in one period."""

    machine: MachineSettings
    run_ns: int = 0
    cost: int = 0
    by_category: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    ns_by_category: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    busy_by_backend: dict[str, int] = field(default_factory=dict)
    """What each engine measured while it had requests, lost work included: a second opinion on
    the charges, part of no sum."""

    @property
    def unserved(self) -> int:
        """All categories."""
        return sum(self.by_category.values())

    def add(self, hours: MachineHours, price: Decimal) -> None:
        """Add measured time, all at one price per hour."""
        self.run_ns += hours.run_ns
        self.cost += machine_cost(hours.run_ns, price)
        for category, name in zip(CATEGORIES, _MEASURED, strict=True):
            ns = getattr(hours, name)
            self.by_category[category] += machine_cost(ns, price)
            self.ns_by_category[category] += ns
        for backend, ns in hours.busy_ns.items():
            known = self.busy_by_backend.get(backend, 0)
            self.busy_by_backend[backend] = known + machine_cost(ns, price)

    def shown(self, charged: int) -> dict[str, Any]:
        """As JSON, beside what was charged there."""
        machine = self.machine
        return {
            "machine": machine.name,
            "machine_type": machine.type,
            "devices": machine.devices,
            "hours": _hours_text(self.run_ns),
            "cost_usd": usd_text(self.cost),
            "charged_usd": usd_text(charged),
            **{f"{name}_usd": usd_text(nano) for name, nano in self.by_category.items()},
            **{f"{name}_hours": _hours_text(ns) for name, ns in self.ns_by_category.items()},
            "unattributed_usd": usd_text(self.cost - self.unserved - charged),
        }


def machine_costs(
    machines: Iterable[PricedMachine],
    intervals: Mapping[str, Sequence[Interval]],
    since_us: int,
    until_us: int,
) -> list[MachineCost]:
    """Every machine that ran in [since, until), as far as it is measured."""
    found = []
    for machine in machines:
        known = intervals.get(machine.machine.name)
        if known is not None:
            edge_us = max(since_us, measured_until_us(known, until_us))
            found += costs_between(machine, known, [since_us, edge_us])
    return found


async def known_machines(connection: "AsyncConnection", settings: Settings) -> list[PricedMachine]:
    """The machines that are configured or were, with what they cost when."""
    return priced(configured(settings), await recorded_machines(connection))


def configured(settings: Settings) -> list[MachineSettings]:
    """The machines of the configuration, the implicit one included."""
    machines = list(settings.machines)
    if all(machine.name != "local" for machine in machines):
        machines.append(MachineSettings(name="local"))
    return machines


def costs_between(
    machine: PricedMachine, intervals: Sequence[Interval], edges_us: Sequence[int]
) -> list[MachineCost]:
    """What a machine cost between each two of the edges, which ascend."""
    found = [MachineCost(machine=machine.machine) for _ in edges_us[1:]]
    first, last = _extent(intervals)
    inner = [at for at in edges_us[1:-1] if first < at < last]
    cuts = [max(edges_us[0], first), *inner, min(edges_us[-1], last)]
    if cuts[0] >= cuts[-1]:
        return found
    cuts = sorted({*cuts, *machine.changes_us(cuts[0], cuts[-1])})
    for at_us, hours in zip(cuts, add_up(intervals, cuts), strict=False):
        price = machine.usd_per_hour(at_us / 1_000_000)
        found[bisect_right(edges_us, at_us) - 1].add(hours, price)
    return found


def _extent(intervals: Iterable[Interval]) -> tuple[int, int]:
    spans = [(i.started_us, i.ended_us) for i in intervals]
    return min((s for s, _ in spans), default=0), max((e for _, e in spans), default=0)


def _hours_text(ns: int) -> str:
    """Hours with four decimals."""
    ten_thousandths = ns // (_MS_PER_HOUR * 100)
    return f"{ten_thousandths // 10_000}.{ten_thousandths % 10_000:04d}"


def allocate(amount: int, weights: Sequence[int]) -> list[int]:
    """Split an amount in proportion to weights, to the last nano-dollar (largest remainders).

    With all weights zero nobody gets anything.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [amount * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: -(amount * weights[i] % whole))
    for index in order[: amount - sum(shares)]:
        shares[index] += 1
    return shares
