"""`headgate overrides`: what operators have changed for a while."""

import click

from gateway.cli.common import config_option, json_option, print_json, url_option
from gateway.cli.database import table
from gateway.cli.switches import current_overrides


@click.command()
@config_option
@url_option
@json_option
@click.pass_context
def overrides(ctx: click.Context, config: str | None, url: str | None, as_json: bool) -> None:
    """Pins, caches that are off, drained backends: since when, until when, by whom and why."""
    found = current_overrides(ctx, config, url)
    if as_json:
        print_json(found)
        return
    columns = ["slot", "value", "since", "until", "by", "why"]
    table(columns, [[str(one[name]) for name in columns] for one in found])
