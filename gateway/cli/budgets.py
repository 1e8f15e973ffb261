"""`headgate budgets`: who may spend what."""

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import run_in_transaction, table

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from gateway.ledger.budget_store import Budget, Spend

_scope = click.option(
    "--scope",
    required=True,
    help="team:NAME, key:ID, user:NAME, tag:NAME=VALUE, model:BACKEND, or global for everybody.",
)
_window = click.option(
    "--window",
    default="month",
    show_default=True,
    help="minute, hour, day, week, month; rolling-24h, rolling-7d (any h or d); lifetime.",
)


_SET = (
    "window", "limit_usd", "soft", "tz", "alert_percents", "downgrade_percent", "downgrade_policy"
)  # fmt: skip


@click.group()
def budgets() -> None:
    """Set, list and remove budgets.

    A running gateway sees changes at once, on other hosts within two seconds. A request that would
    pass a hard limit is refused before anything is spent.
    """


@budgets.command("set")
@_scope
@click.option("--limit-usd", required=True, help="A decimal number of dollars, such as 12.50.")
@_window
@click.option("--soft", is_flag=True, help="Warn in the log, refuse nothing.")
@click.option("--tz", default="UTC", show_default=True, help="In which days and months begin.")
@click.option(
    "--alert-at",
    "alert_percents",
    type=int,
    multiple=True,
    help="Tell when this percentage is passed; can be given again. Default: 80 and 100.",
)
@click.option(
    "--downgrade-at",
    "downgrade_percent",
    type=int,
    help="From this percentage on --downgrade-policy decides in place of any other.",
)
@click.option("--downgrade-policy", help="A cheaper policy.")
@config_option
@json_option
@click.pass_context
def set_(
    ctx: click.Context,
    scope: str,
    limit_usd: str,
    window: str,
    soft: bool,
    tz: str,
    alert_percents: tuple[int, ...],
    downgrade_percent: int | None,
    downgrade_policy: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Limit what a scope may spend in each window; again: change the limit."""
    from gateway.ledger.budget_store import DEFAULT_ALERT_PERCENTS, Budget, set_budget
    from gateway.ledger.money import parse_usd

    async def work(connection: "AsyncConnection") -> "Budget":
        wanted = Budget(
            scope=scope,
            window=window,
            limit_nano_usd=parse_usd(limit_usd),
            soft=soft,
            tz=tz,
            alert_percents=alert_percents or DEFAULT_ALERT_PERCENTS,
            downgrade_percent=downgrade_percent,
            downgrade_policy=downgrade_policy,
        )
        return await set_budget(connection, wanted, now=time.time())

    budget = run_in_transaction(
        settings_of(ctx, config),
        work,
        act=("budgets.set", scope),
        details=lambda made: {name: _json(made, None)[name] for name in _SET},
    )
    if as_json:
        print_json(_json(budget, None))
    else:
        kind = "Soft budget" if soft else "Budget"
        limit = _usd(budget.limit_nano_usd)
        click.echo(f"{kind} of {budget.scope}: ${limit} per {budget.window}.")


@budgets.command("list")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """All budgets with what their current window has spent, reserved and left."""
    from gateway.ledger.budget_store import counter_of, list_budgets, read_spend

    async def work(connection: "AsyncConnection") -> "list[tuple[Budget, Spend | None]]":
        listed = await list_budgets(connection)
        counters = [counter_of(budget, time.time()) for budget in listed]
        spend = await read_spend(connection, counters)
        return [(b, spend.get(counter)) for b, counter in zip(listed, counters, strict=True)]

    found = run_in_transaction(settings_of(ctx, config), work)
    shown = [_json(*pair) for pair in found]
    if as_json:
        print_json(shown)
        return
    columns = ["scope", "window", "limit_usd", "spent_usd", "reserved_usd", "overrun_usd"]
    columns += ["left_usd"]
    table(
        [*columns, "kind"],
        [[*(row[name] for name in columns), "soft" if row["soft"] else "hard"] for row in shown],
        right=columns[2:],
    )


@budgets.command()
@_scope
@_window
@config_option
@json_option
@click.pass_context
def remove(ctx: click.Context, scope: str, window: str, config: str | None, as_json: bool) -> None:
    """Let a scope spend without this limit."""
    from gateway.ledger.budget_store import remove_budget

    run_in_transaction(
        settings_of(ctx, config),
        lambda connection: remove_budget(connection, scope=scope, window=window),
        act=("budgets.remove", scope),
        details=lambda _: {"window": window},
    )
    if as_json:
        print_json({"scope": scope, "window": window, "removed": True})
    else:
        click.echo(f"The budget of {scope} per {window} is gone.")


@budgets.command()
@click.option("--days", type=click.IntRange(min=1), help="Only of the last so many days.")
@config_option
@json_option
@click.pass_context
def overruns(ctx: click.Context, days: int | None, config: str | None, as_json: bool) -> None:
    """What requests cost beyond what was held for them, by key."""
    from gateway.ledger.overruns import list_overruns

    since = None if days is None else time.time() - (days - 1) * 86_400
    found = run_in_transaction(
        settings_of(ctx, config), lambda connection: list_overruns(connection, since=since)
    )
    if as_json:
        print_json(found)
        return
    columns = ["key", "overrun_usd", "requests"]
    table(columns, [[str(row[name]) for name in columns] for row in found], right=columns[1:])


def _json(budget: "Budget", spend: "Spend | None") -> dict[str, Any]:
    spent, reserved = (spend.spent, spend.reserved) if spend else (0, 0)
    overrun = spend.overrun if spend else 0
    left = max(budget.limit_nano_usd - spent - reserved - overrun, 0)
    return {
        "scope": budget.scope,
        "window": budget.window,
        "soft": budget.soft,
        "tz": budget.tz,
        "alert_percents": list(budget.alert_percents),
        "downgrade_percent": budget.downgrade_percent,
        "downgrade_policy": budget.downgrade_policy,
        "limit_usd": _usd(budget.limit_nano_usd),
        "spent_usd": _usd(spent),
        "reserved_usd": _usd(reserved),
        "overrun_usd": _usd(overrun),
        "left_usd": _usd(left),
    }


def _usd(nano_usd: int) -> str:
    from gateway.ledger.money import usd_text

    return usd_text(nano_usd)
