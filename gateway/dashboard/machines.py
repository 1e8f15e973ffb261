"""`/backends`: machines, what they cost and do; backends, their load, and the way to drain one."""

from decimal import Decimal
from typing import Any

from gateway.api.health import describe
from gateway.dashboard.charts import Cell, Chart
from gateway.dashboard.periods import PRESETS, period_of
from gateway.dashboard.render import now as clock
from gateway.dashboard.visitor import Visit
from gateway.ledger.machine_costs import CATEGORIES, configured
from gateway.ledger.machine_prices import usd_per_hour

_PARTS = ("charged", *CATEGORIES, "unattributed")


async def machines(visit: Visit) -> dict[str, Any]:
    """Each machine with its backends."""
    now, parts = clock(), visit.parts
    period = period_of(visit.asked, visit.tz, now, default="today")
    report = await visit.questions.report(
        group_by="backend", tz=visit.tz, now=now, **period.moments
    )
    health = await describe(visit.pipeline)
    measured = {machine["machine"]: machine for machine in report["machines"]}
    found = []
    for machine in configured(parts.settings):
        about = measured.get(machine.name)
        on_it = [b for b in health["backends"] if b["machine"] == machine.name]
        if about is None and not on_it:
            continue
        found.append(
            {
                "name": machine.name,
                "type": machine.type,
                "usd_per_hour": price_text(usd_per_hour(machine, now.timestamp())),
                "about": about,
                "parts": {} if about is None else _divided(about),
                "backends": on_it,
            }
        )
    elsewhere = [b for b in health["backends"] if b["machine"] is None]
    return {
        "machines": found,
        "elsewhere": elsewhere,
        "hints": await visit.questions.idle_hints(visit.tz),
        "health": health,
        "live": visit.live,
        "used": {row["backend"]: row for row in report["rows"]},
        "period": period,
        "presets": PRESETS,
        "may_drain": visit.caller.can("operations:write"),
        "charts": {"machines": _chart(report["machines"])},
    }


def _divided(about: dict[str, Any]) -> dict[str, float]:
    """What a machine's cost went into, shares of 1."""
    cost = Decimal(about["cost_usd"])
    return {name: float(Decimal(about[f"{name}_usd"]) / cost) if cost else 0.0 for name in _PARTS}


def _chart(rows: list[dict[str, Any]]) -> Chart:
    columns = ("Machine", "Hours", "Cost $", *(f"{name} $".replace("_", " ") for name in _PARTS))
    cells: list[tuple[Cell, ...]] = [
        (row["machine"], row["hours"], row["cost_usd"], *(row[f"{name}_usd"] for name in _PARTS))
        for row in rows
    ]
    return Chart(
        name="machines", title="Machines", kind="bars", columns=columns, rows=cells, unit="$"
    )


def price_text(usd: Decimal) -> str:
    """In full, with cents at least."""
    return f"{usd:.2f}" if usd == round(usd, 2) else format(usd, "f")
