"""`headgate report experiment`: the arms of a split beside each other."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import run_in_transaction, table

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@click.command()
@click.option("--policy", required=True, help="Whose rule it is.")
@click.option("--rule", default="default", show_default=True, help="With the split or the shadow.")
@click.option("--baseline", metavar="ARM", help="Compare with it; else with the largest.")
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option("--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: now.")
@config_option
@json_option
@click.pass_context
def experiment(
    ctx: click.Context,
    policy: str,
    rule: str,
    baseline: str | None,
    since: str | None,
    until: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Per arm: requests, cost, seconds, errors and feedback, with 95 % intervals.

    A request counts for the arm that was chosen for it. Users and conversations stick to an arm, so
    intervals count them, not requests.
    """
    from gateway.insights import experiments
    from gateway.ledger.report_query import parse_query

    period = parse_query(since=since, until=until, now=datetime.now(UTC))

    async def read(connection: "AsyncConnection") -> dict[str, Any]:
        return await experiments.experiment(
            connection,
            policy=policy,
            rule=rule,
            since_us=period.since_us,
            until_us=period.until_us,
            baseline=baseline,
        )

    report = run_in_transaction(settings_of(ctx, config), read)
    if as_json:
        print_json(report)
        return
    figures = ("cost_usd", "seconds", "errors", "feedback")
    rows = []
    for arm in report["arms"]:
        rows.append([arm["arm"], str(arm["requests"]), str(arm["draws"])])
        rows[-1] += [_interval(arm[figure]) for figure in figures]
        if "against_baseline" in arm:
            against = arm["against_baseline"]
            rows.append([f"  − {report['baseline']}", "", ""])
            rows[-1] += [_interval(against[figure], sign=True) for figure in figures]
    table(["arm", "requests", "draws", *figures], rows, right={"requests", "draws", *figures})
    if report["shadows"]:
        names = ("seconds", "cost_usd", "answers_cost_usd", "same_answer")
        table(
            ["shadow", "copies", "errors", *names],
            [
                [one["backend"], str(one["copies"]), str(one["errors"])]
                + [_interval(one[name]) for name in names]
                for one in report["shadows"]
            ],
            right={"copies", "errors", *names},
        )


def _interval(mean: dict[str, Any] | None, *, sign: bool = False) -> str:
    if mean is None:
        return "-"
    digits = "+.3g" if sign else ".3g"
    value = format(mean["value"], digits)
    if mean["low"] is None:
        return value
    return f"{value} [{mean['low']:{digits}}, {mean['high']:{digits}}]"
