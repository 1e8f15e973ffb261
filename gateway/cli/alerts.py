"""`headgate alerts`: what is wrong, who was told, and whether telling works."""

import time
from datetime import UTC, datetime
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
    from gateway.alerts.store import list_alerts, undelivered

    async def read(engine: Any) -> tuple[Any, Any]:
        async with engine.connect() as connection:
            found = await list_alerts(connection, open_only=open_only, limit=limit)
            return found, await undelivered(connection)

    found, waiting = run_on_engine(settings_of(ctx, config), read)
    if as_json:
        print_json({"alerts": found, "undelivered": waiting})
        return
    rows = [
        [_moment(a.opened_at), _moment(a.resolved_at), a.severity, a.title, a.text] for a in found
    ]
    table(["opened", "resolved", "severity", "what", "why"], rows)
    for one in waiting:
        state = "given up" if one["given_up"] else f"tried {one['attempts']} times"
        click.echo(
            f"not delivered to {one['channel']} ({state}): {one['error'] or 'not tried yet'}"
        )


@alerts.command()
@click.argument("channel", required=False)
@config_option
@click.pass_context
def test(ctx: click.Context, channel: str | None, config: str | None) -> None:
    """Send a test message to CHANNEL, or to all of them; exits 1 where one does not take it."""
    import asyncio

    from gateway.alerts.deliver import NotDelivered

    settings = settings_of(ctx, config)
    channels = [c for c in settings.alerts.channels if channel in (None, c.name)]
    if not channels:
        known = ", ".join(c.name for c in settings.alerts.channels) or "none is configured"
        fail(f"no channel {channel or ''}; [[alerts.channels]] has: {known}", code=2)
    failed = False
    for one in channels:
        try:
            asyncio.run(_send_test(one))
            click.echo(f"{one.name}: delivered")
        except NotDelivered as error:
            failed = True
            click.echo(f"{one.name}: not delivered: {error}", err=True)
    ctx.exit(int(failed))


async def _send_test(channel: Any) -> None:
    import uuid

    import httpx

    from gateway.alerts.deliver import deliver
    from gateway.alerts.model import Message

    now = time.time()
    message = Message(
        id=f"{uuid.uuid4().hex}-test-{channel.name}",
        event="test",
        kind="test",
        severity="info",
        title="Headgate can reach this channel",
        text="Nothing is wrong. `headgate alerts test` sent this.",
        opened_at=now,
    )
    async with httpx.AsyncClient() as client:
        await deliver(message, channel, client, now=now)


def _moment(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
