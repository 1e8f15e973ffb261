"""`headgate report forecast|anomalies|hints`: what the past says."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_output import set_amounts

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


@click.command()
@click.option(
    "--by",
    type=click.Choice(["all", "team", "key", "model", "backend", "machine"]),
    default="all",
    show_default=True,
)
@click.option("--tz", default="UTC", show_default=True, help="In which the month begins and ends.")
@json_option
@config_option
@click.pass_context
def forecast(ctx: click.Context, by: Any, tz: str, as_json: bool, config: str | None) -> None:
    """What the running month will have cost at its end, with an interval."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from gateway.insights.outlook import month_of, month_outlook

    now = datetime.now(UTC)
    try:
        begin, end = month_of(now, tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise click.BadParameter(f"{tz!r}; give an IANA name such as Europe/Berlin") from None

    async def read(engine: "AsyncEngine") -> list[dict[str, Any]]:
        async with engine.connect() as connection:
            found = await month_outlook(connection, by=by, tz=tz, now=now)
        return [one.shown() for one in found]

    rows = run_on_engine(settings_of(ctx, config), read)
    if as_json:
        print_json({"by": by, "tz": str(ZoneInfo(tz)), "since": begin, "until": end, "rows": rows})
        return
    if not rows:
        click.echo("Nothing to go by: the ledger has no full hour yet.")
        return
    amounts = ["spent_usd", "expected_usd", "low_usd", "high_usd"]
    set_ = set_amounts([[row[name] for row in rows] for name in amounts])
    shown = [
        [row["name"] or "all", *usd, row["note"] or "-"]
        for row, *usd in zip(rows, *set_, strict=True)
    ]
    table([by, *amounts, "note"], shown, right=amounts)
    click.echo(f"{begin.date()} to {end.date()}, {tz}; low to high holds 90 % of the time.")


@click.command()
@json_option
@config_option
@click.pass_context
def anomalies(ctx: click.Context, as_json: bool, config: str | None) -> None:
    """Teams, models and machines that left their usual band in the last full hour."""
    from gateway.insights.changes import find_changes
    from gateway.ledger.money import usd_text

    async def read(engine: "AsyncEngine") -> Any:
        async with engine.connect() as connection:
            return await find_changes(connection, datetime.now(UTC))

    found = run_on_engine(settings_of(ctx, config), read)
    if as_json:
        print_json([{**_fields(one), "times": round(one.times, 3)} for one in found])
        return
    if not found:
        click.echo(
            "Nobody left a usual band in the last full hour. A band needs three days of history."
        )
        return
    now, usual = (
        [usd_text(getattr(one, name)) for one in found]
        for name in ("actual_nano_usd", "expected_nano_usd")
    )
    rows = [
        [
            f"{one.by} {one.name}",
            one.since.strftime("%Y-%m-%d %H:%MZ"),
            *usd,
            f"{one.times:.1f}x",
            one.reason,
        ]
        for one, *usd in zip(found, *set_amounts([now, usual]), strict=True)
    ]
    table(["who", "since", "usd", "usual_usd", "times", "why"], rows, right=["usd", "usual_usd"])


def _fields(one: Any) -> dict[str, Any]:
    import msgspec

    return {name: getattr(one, name) for name in msgspec.structs.asdict(one)}


@click.command()
@click.option("--days", type=click.IntRange(1, 90), default=14, show_default=True)
@click.option("--tz", default="UTC", show_default=True, help="Of the hours.")
@json_option
@config_option
@click.pass_context
def hints(ctx: click.Context, days: int, tz: str, as_json: bool, config: str | None) -> None:
    """Machines that mostly idle, and those more or larger than the busiest hour needs."""
    from gateway.insights.hints import find_hints

    settings = settings_of(ctx, config)

    async def read(engine: "AsyncEngine") -> Any:
        async with engine.connect() as connection:
            return await find_hints(connection, settings, days=days, tz=tz, now=datetime.now(UTC))

    found = run_on_engine(settings, read)
    if as_json:
        print_json(found)
        return
    for one in found:
        click.echo(one.text)
    if not found:
        click.echo(f"No machine stood idle enough in the last {days} days to be worth a word.")
