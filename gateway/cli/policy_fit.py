"""`headgate policy fit`: a classifier head out of outcomes, fitted in a child process."""

from typing import Any

import click

from gateway.cli.common import config_option, json_option, print_json, run_child, settings_of


@click.command()
@click.option(
    "--outcomes",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="JSON Lines: prompt or messages, and scores by backend.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where the head goes; name it as [routing] head.",
)
@click.option(
    "--head",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Whose tasks and difficulty to keep; else the configured head.",
)
@config_option
@json_option
@click.pass_context
def fit(
    ctx: click.Context, outcomes: str, out: str, head: str | None, config: str | None, as_json: bool
) -> None:
    """Fit a classifier head on outcomes, cross-validated; writes its card, curves, predictions.

    Runs as a child process: fitting needs libraries that the gateway does not load.
    """
    arguments = ["--outcomes", outcomes, "--out", out]
    base = head or settings_of(ctx, config).routing.head
    if base:
        arguments += ["--head", base]
    card = run_child("gateway.learning", arguments)
    if as_json:
        print_json(card)
    else:
        _print_card(card, out)


def _print_card(card: dict[str, Any], out: str) -> None:
    from rich.console import Console
    from rich.table import Table

    click.echo(f"{out}: head {card['version']} from {card['rows']} rows in {card['groups']} groups")
    table = Table("backend", "rows", "pass rate", "AUC", "ECE")
    for name, entry in card["quality"].items():
        area = "-" if entry["auc"] is None else f"{entry['auc']:.3f}"
        table.add_row(
            name, str(entry["rows"]), f"{entry['pass_rate']:.3f}", area, f"{entry['ece']:.3f}"
        )
    Console().print(table)
    if card["apgr"] is None:
        click.echo("one backend, or no prompt that all were asked: nothing to route by")
        return
    table = Table("router", "APGR", "CPT50", "CPT80", "area", box=None)
    for name in ("router", "length", "shuffled", "oracle"):
        figures = card if name == "router" else card["baselines"][name]
        table.add_row(
            name, *(_interval(figures[key]) for key in ("apgr", "cpt50", "cpt80", "area"))
        )
    Console().print(table)
    gate = card["sensitivity"]
    click.echo(f"words put around a prompt move it: {'little' if gate['passed'] else 'TOO MUCH'}")


def _interval(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
