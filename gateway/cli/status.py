"""`headgate status`: one screen."""

from typing import Any

import click

from gateway.cli.common import (
    config_option,
    gateway_url,
    get_json,
    json_option,
    print_json,
    settings_of,
)


@click.command()
@config_option
@click.option("--url", help="Of the gateway; else $HEADGATE_URL, else from the configuration.")
@json_option
@click.pass_context
def status(ctx: click.Context, config: str | None, url: str | None, as_json: bool) -> None:
    """Health, load and today's spend of a running gateway."""
    from datetime import UTC, datetime

    base = gateway_url(settings_of(ctx, config), url)
    health = get_json(base, "/health")
    today = datetime.now(UTC).date().isoformat()
    costs = get_json(base, f"/reports/costs?since={today}")
    if as_json:
        print_json({"url": base, "health": health, "today": costs["totals"]})
        return
    _print(base, health, costs)


def _print(base: str, health: dict[str, Any], costs: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    totals = costs["totals"]
    console.print(f"[bold]{base}[/bold]  {health.get('status', '?')}")
    table = Table("backend", "tier", "ready", "load", "machine", box=None)
    for backend in health.get("backends", []):
        ready = "yes" if backend.get("ready") else f"[red]no[/red] {backend.get('detail', '')}"
        load = f"{backend.get('load', 0):.0%}"
        table.add_row(backend["name"], backend.get("tier", ""), ready, load, backend["machine"])
    console.print(table)
    console.print(
        f"today (UTC): {totals['requests']} requests, ${totals['cost_usd']} spent, "
        f"${totals['saved_usd']} saved by caches, {totals['errors']} errors"
    )
    for one in health.get("overrides", []):
        console.print(f"[bold]override[/bold] {one['slot']} = {one['value']} until {one['until']}")
    for problem in health.get("problems", []):
        console.print(f"[yellow]! {problem}[/yellow]")
