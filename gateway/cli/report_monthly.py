"""`headgate report monthly`: a month as one HTML file, written or sent."""

from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, fail, settings_of
from gateway.cli.database import run_on_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.insights.monthly import MonthlyReport


@click.command()
@click.argument("month", metavar="YYYY-MM")
@click.option("--team", help="Of this team only.")
@click.option("--tz", help="In which the month begins and ends. Default: as in [reports.monthly].")
@click.option("--out", type=click.Path(dir_okay=False), help="Else to standard output.")
@click.option("--send", metavar="CHANNEL", help="To one of [[alerts.channels]], instead.")
@config_option
@click.pass_context
def monthly(
    ctx: click.Context,
    month: str,
    team: str | None,
    tz: str | None,
    out: str | None,
    send: str | None,
    config: str | None,
) -> None:
    """A month as one printable HTML file, with charts.

    A gateway sends each month's by itself to channels that name teams under `monthly`.
    """
    from pathlib import Path

    from gateway.insights.monthly import monthly_report

    settings = settings_of(ctx, config)
    channel = next((c for c in settings.alerts.channels if c.name == send), None)
    if send is not None and channel is None:
        known = ", ".join(c.name for c in settings.alerts.channels) or "none is configured"
        fail(f"no channel {send!r}; [[alerts.channels]] has: {known}", code=2)
    zone = tz or settings.reports.monthly.tz

    async def read(engine: "AsyncEngine") -> "MonthlyReport":
        return await monthly_report(engine, settings, month=month, team=team, tz=zone)

    report = run_on_engine(settings, read)
    if not report.facts["requests"]:
        click.echo(f"headgate: {report.facts['scope']} had no request in {month}", err=True)
    if channel is not None:
        _send(report, channel)
    elif out is None:
        click.echo(report.html)
    else:
        Path(out).write_text(report.html, encoding="utf-8")


def _send(report: "MonthlyReport", channel: Any) -> None:
    """Now, beside the schedule."""
    import asyncio
    import time
    import uuid

    import httpx

    from gateway.alerts.deliver import NotDelivered, deliver
    from gateway.alerts.reports import message_of

    async def send() -> None:
        message = message_of(report, f"{uuid.uuid4().hex}-report-{channel.name}")
        async with httpx.AsyncClient() as client:
            await deliver(message, channel, client, now=time.time())

    try:
        asyncio.run(send())
    except NotDelivered as error:
        fail(f"{channel.name}: not delivered: {error}")
    click.echo(f"{channel.name}: delivered")
