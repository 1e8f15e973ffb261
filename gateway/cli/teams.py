"""`headgate teams`: who pays."""

import time

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table


@click.group()
def teams() -> None:
    """Create and list teams."""


@teams.command()
@click.argument("name")
@config_option
@json_option
@click.pass_context
def create(ctx: click.Context, name: str, config: str | None, as_json: bool) -> None:
    """Make a team; one that is there already stays as it is."""
    from gateway.ledger.keys import create_team

    new = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: create_team(connection, name, now=time.time()),
    )
    if as_json:
        print_json({"name": name, "created": new})
    else:
        click.echo(f"Team {name} {'is made' if new else 'was there already'}.")


@teams.command("list")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """All teams, with the number of keys that are not revoked."""
    from gateway.ledger.keys import list_teams

    found = run_in_transaction(settings_of(ctx, config), list_teams, changes=False)
    if as_json:
        print_json([{**team, "created_at": moment(team["created_at"])} for team in found])
        return
    table(
        ["team", "created", "keys"],
        [[team["name"], moment(team["created_at"]) or "", str(team["keys"])] for team in found],
        right={"keys"},
    )
