"""`/budgets`: budgets, keys and teams, as far as the key's role reaches."""

from typing import Any

from gateway.api.acts import reading
from gateway.api.admin_budgets import shown_budgets
from gateway.dashboard.charts import Cell, Chart
from gateway.dashboard.overview import used_share
from gateway.dashboard.visitor import Visit
from gateway.ledger import key_store
from gateway.ledger.access import ROLES
from gateway.ledger.audit import list_acts
from gateway.ledger.keys import SCOPES
from gateway.ledger.windows import CALENDAR
from gateway.limits.model import shown

ACTS = 20
WINDOWS = (*CALENDAR, "rolling-24h", "rolling-7d", "rolling-30d", "lifetime")


async def budgets(visit: Visit) -> dict[str, Any]:
    """What the key may see, and may change."""
    caller = visit.caller
    team = caller.team if caller.role == "team" else None
    found = await shown_budgets(visit.pipeline, caller)
    for budget in found:
        budget["used"] = used_share(budget)
    async with reading(visit.pipeline) as connection:
        keys = await key_store.list_keys(connection, team=team)
        teams = await key_store.list_teams(connection)
        acts = await list_acts(connection, limit=ACTS) if caller.can("audit:read") else None
    own = [one for one in teams if caller.can("teams:read", team=one["name"])]
    listed = [{**key_store.shown_key(key), "live": _live(key, visit.parts.clock())} for key in keys]
    listed.sort(key=lambda key: (not key["live"], -key["created_at"]))
    return {
        "budgets": sorted(found, key=lambda budget: -budget["used"]),
        "keys": listed,
        "teams": [{**one, "limits": shown(one["limits"])} for one in own],
        "acts": acts,
        "windows": WINDOWS,
        "scopes": ("inference", "admin") if team else SCOPES,
        "roles": ("team",) if team else ROLES,
        "policies": visit.parts.book.names(),
        "may": {
            "keys": caller.can("keys:write", team=caller.team),
            "budgets": caller.can("budgets:write", team=caller.team),
            "teams": caller.can("teams:write"),
        },
        "own_team": team,
        "charts": {"budgets": _budgets(found), "keys": _keys(listed)},
    }


def _live(key: key_store.Key, now: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


def _budgets(rows: list[dict[str, Any]]) -> Chart:
    names = ("scope", "window", "limit_usd", "spent_usd", "reserved_usd", "overrun_usd", "left_usd")
    cells: list[tuple[Cell, ...]] = [tuple(row[name] for name in names) for row in rows]
    return Chart(name="budgets", title="Budgets", kind="bars", columns=names, rows=cells, unit="$")


def _keys(rows: list[dict[str, Any]]) -> Chart:
    names = ("id", "prefix", "team", "name", "user", "role")
    cells: list[tuple[Cell, ...]] = [
        (*(row[name] for name in names), " ".join(row["scopes"]), "yes" if row["live"] else "no")
        for row in rows
    ]
    columns = (*names, "scopes", "live")
    return Chart(name="keys", title="Keys", kind="bars", columns=columns, rows=cells)
