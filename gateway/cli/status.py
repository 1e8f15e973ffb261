"""`headgate status`: one screen."""

from collections.abc import Iterator
from typing import Any

import click

from gateway.cli.common import (
    config_option,
    gateway_url,
    get_json,
    json_option,
    print_json,
    settings_of,
    url_option,
)
from gateway.cli.database import moment, table

_DAY_S = 86_400
_MOST = 8
"""Lines about what changed; the others are counted."""
_BREAKERS = {"half_open": "half open: the next request tries"}


@click.command()
@config_option
@url_option
@json_option
@click.pass_context
def status(ctx: click.Context, config: str | None, url: str | None, as_json: bool) -> None:
    """Health, load, who fails over, today's spend and what changed in 24 hours.

    Spending is for keys that may see reports, alerts and changes for keys that administrate.
    """
    import time
    from datetime import UTC, datetime

    base = gateway_url(settings_of(ctx, config), url)
    health = get_json(base, "/health")
    today = datetime.now(UTC).date().isoformat()
    costs = get_json(base, f"/reports/costs?since={today}", or_none=True)
    since = int(time.time()) - _DAY_S
    audit = get_json(base, f"/admin/audit?since={since}&limit=1000", or_none=True)
    alerts = get_json(base, "/admin/alerts?limit=100", or_none=True)
    found = {
        "url": base,
        "health": health,
        "failing_over": [one["name"] for one in health["backends"] if not one["ready"]],
        "today": None if costs is None else costs["totals"],
        "changes": None if audit is None else [act for act in audit["acts"] if _changed(act)],
        "alerts": None if alerts is None else [a for a in alerts["alerts"] if not a["resolved_at"]],
    }
    if as_json:
        print_json(found)
        return
    click.echo(f"{base}  {health['status']}, policy {health['policy']}")
    columns = ["backend", "tier", "ready", "load", "breaker", "machine"]
    table(columns, [_row(one) for one in health["backends"]], right={"load"})
    for line in _lines(found):
        click.echo(line)


def _changed(act: dict[str, Any]) -> bool:
    return bool(act["outcome"] == "done")


def _row(backend: dict[str, Any]) -> list[str]:
    ready = "yes" if backend["ready"] else f"no: {backend['detail']}"
    load, machine = f"{backend['load']:.0%}", backend["machine"] or "-"
    breaker = _BREAKERS.get(backend["breaker"], backend["breaker"])
    if backend.get("addresses_ejected"):
        breaker += f", {backend['addresses_ejected']} of {backend['addresses']} addresses ejected"
    return [backend["name"], backend["tier"], ready, load, breaker, machine]


def _lines(found: dict[str, Any]) -> Iterator[str]:
    health, totals = found["health"], found["today"]
    yield f"failing over: {', '.join(found['failing_over']) or 'nobody'}"
    if totals is not None:
        yield (
            f"today (UTC): {totals['requests']} requests, ${totals['cost_usd']} spent, "
            f"${totals['saved_usd']} saved by caches, {totals['errors']} errors"
        )
    for one in health["overrides"]:
        yield f"override: {one['slot']} = {one['value']} until {one['until']}"
    for problem in health["problems"]:
        yield f"problem: {problem}"
    for alert in found["alerts"] or ():
        yield f"alert since {alert['opened_at']}: {alert['title']}"
    if found["changes"] is None:
        return
    yield f"changed in 24 h: {len(found['changes']) or 'nothing'}"
    for act in found["changes"][:_MOST]:
        yield f"  {moment(act['at'])} {act['action']} {act['target']} by {act['actor']}"
    if len(found["changes"]) > _MOST:
        yield "  … `headgate audit` shows all"
