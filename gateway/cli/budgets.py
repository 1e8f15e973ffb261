"""`headgate budgets`: who may spend what."""

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.administration import administrate
from gateway.cli.common import config_option, json_option, print_json, settings_of, url_option
from gateway.cli.database import run_in_transaction, table
from gateway.ledger.money import parse_usd

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

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


def _amount(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    try:
        parse_usd(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


@click.group()
def budgets() -> None:
    """Set, list and remove budgets.

    By the running gateway; where none answers, in the database, which gateways on this host look at
    at once, others within two seconds. A request that would pass a hard limit is refused before
    anything is spent.
    """


@budgets.command("set")
@_scope
@click.option(
    "--limit-usd",
    required=True,
    callback=_amount,
    help="A decimal number of dollars, such as 12.50.",
)
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
@url_option
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
    url: str | None,
    as_json: bool,
) -> None:
    """Limit what a scope may spend in each window; again: change the limit."""
    settings = settings_of(ctx, config)
    body: dict[str, Any] = {
        "scope": scope,
        "limit_usd": limit_usd,
        "window": window,
        "soft": soft,
        "tz": tz,
        "downgrade_percent": downgrade_percent,
        "downgrade_policy": downgrade_policy,
    }
    if alert_percents:
        body["alert_percents"] = list(alert_percents)

    def directly() -> dict[str, Any]:
        import msgspec

        from gateway.ledger.budget_store import BudgetBody, set_budget, shown_budget
        from gateway.ledger.budget_subjects import missing_subject

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            wanted = msgspec.convert(body, BudgetBody).wanted()
            backends = [backend.name for backend in settings.backends]
            warning = await missing_subject(connection, wanted.scope, backends=backends)
            return shown_budget(await set_budget(connection, wanted)) | {"warning": warning}

        return run_in_transaction(
            settings,
            work,
            act=("budgets.set", scope),
            details=lambda made: {name: made[name] for name in _SET},
        )

    budget = administrate(settings, "POST", "/admin/budgets", directly, json=body, url=url)
    if as_json:
        print_json(budget)
    else:
        kind = "Soft budget" if soft else "Budget"
        click.echo(f"{kind} of {budget['scope']}: ${budget['limit_usd']} per {budget['window']}.")
    if warning := budget.get("warning"):  # an older gateway has none
        click.echo(f"warning: {warning}", err=True)


@budgets.command("list")
@config_option
@url_option
@json_option
@click.pass_context
def list_(ctx: click.Context, config: str | None, url: str | None, as_json: bool) -> None:
    """All budgets with what their current window has spent, reserved and left."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.budget_store import list_spending, shown_budget
        from gateway.ledger.database_clock import now_of

        async def work(connection: "AsyncConnection") -> list[dict[str, Any]]:
            now = await now_of(connection)
            return [shown_budget(*pair) for pair in await list_spending(connection, now)]

        return {"budgets": run_in_transaction(settings, work)}

    shown = administrate(settings, "GET", "/admin/budgets", directly, url=url)["budgets"]
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
@url_option
@json_option
@click.pass_context
def remove(
    ctx: click.Context, scope: str, window: str, config: str | None, url: str | None, as_json: bool
) -> None:
    """Let a scope spend without this limit."""
    settings, budget = settings_of(ctx, config), {"scope": scope, "window": window}

    def directly() -> dict[str, Any]:
        from gateway.ledger.budget_store import remove_budget

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            await remove_budget(connection, **budget)
            return {**budget, "removed": True}

        return run_in_transaction(
            settings, work, act=("budgets.remove", scope), details=lambda _: {"window": window}
        )

    gone = administrate(settings, "DELETE", "/admin/budgets", directly, params=budget, url=url)
    if as_json:
        print_json(gone)
    else:
        click.echo(f"The budget of {scope} per {window} is gone.")


@budgets.command()
@click.option("--days", type=click.IntRange(min=1), help="Only of the last so many days.")
@config_option
@url_option
@json_option
@click.pass_context
def overruns(
    ctx: click.Context, days: int | None, config: str | None, url: str | None, as_json: bool
) -> None:
    """What requests cost beyond what was held for them, by key."""
    settings = settings_of(ctx, config)
    since = None if days is None else time.time() - (days - 1) * 86_400

    def directly() -> dict[str, Any]:
        from gateway.ledger.overruns import list_overruns

        return {
            "overruns": run_in_transaction(
                settings, lambda connection: list_overruns(connection, since=since)
            )
        }

    params = {} if since is None else {"since": since}
    found = administrate(
        settings, "GET", "/admin/budgets/overruns", directly, params=params, url=url
    )
    if as_json:
        print_json(found["overruns"])
        return
    columns = ["key", "overrun_usd", "requests"]
    rows = [[str(row[name]) for name in columns] for row in found["overruns"]]
    table(columns, rows, right=columns[1:])
