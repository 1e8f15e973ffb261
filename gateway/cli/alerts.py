"""`headgate alerts`: what is wrong, who was told, and whether telling works."""

from collections.abc import Mapping
from typing import Any

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.cli.database import run_on_engine, table


@click.group()
def alerts() -> None:
    """What was found wrong, and who was told."""


@alerts.command("list")
@click.option("--open", "open_only", is_flag=True, help="Only what is wrong now.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@config_option
@click.pass_context
def list_(
    ctx: click.Context, open_only: bool, limit: int, as_json: bool, config: str | None
) -> None:
    """The newest alerts, and deliveries that wait or were given up."""
    from gateway.alerts.show import shown_alerts

    async def read(engine: Any) -> dict[str, Any]:
        async with engine.connect() as connection:
            return await shown_alerts(connection, open_only=open_only, limit=limit)

    found = run_on_engine(settings_of(ctx, config), read)
    if as_json:
        print_json(found)
        return
    columns = ["opened_at", "resolved_at", "severity", "title", "text"]
    rows = [[str(alert[name] or "-") for name in columns] for alert in found["alerts"]]
    table(["opened", "resolved", "severity", "what", "why"], rows)
    for one in found["undelivered"]:
        click.echo(waiting(one))


def waiting(one: Mapping[str, Any]) -> str:
    """Of a message that is not delivered."""
    tried = f"tried {one['attempts']} times, {one['error'] or 'no answer yet'}"
    state = f"given up: {tried}" if one["given_up"] else f"{tried}; again at {one['due_at']}"
    if not one["attempts"]:  # quiet hours; without them it goes out at the next look
        state = f"waits until {one['due_at']}"
    return f"not delivered to {one['channel']}: {one['title']} ({one['event']}); {state}"


@alerts.command()
@click.argument("channel", required=False)
@json_option
@config_option
@click.pass_context
def test(ctx: click.Context, channel: str | None, as_json: bool, config: str | None) -> None:
    """Send a test message to CHANNEL, or to all of them; exits 1 where one does not take it."""
    import asyncio

    import msgspec

    from gateway.alerts.show import send_tests

    settings = settings_of(ctx, config)
    channels = [c for c in settings.alerts.channels if channel in (None, c.name)]
    if not channels:
        known = ", ".join(c.name for c in settings.alerts.channels) or "none"
        which = "no channel" if channel is None else f"no channel {channel!r}"
        fail(f"{which}; [[alerts.channels]] of the configuration names {known}", code=2)
    results = asyncio.run(send_tests(channels))
    if as_json:
        print_json(msgspec.to_builtins(results))
    for one in () if as_json else results:
        words = "delivered" if one.delivered else f"not delivered: {one.error}"
        click.echo(f"{one.channel}: {words}", err=not one.delivered)
    ctx.exit(int(not all(one.delivered for one in results)))
