"""`headgate cache`: off for a while, and on again."""

import click

from gateway.cli.common import config_option, json_option, print_json, url_option
from gateway.cli.switches import for_option, lift_override, said, set_override, why_option


@click.command()
@click.argument("layer", type=click.Choice(["semantic", "exact"]))
@click.argument("state", type=click.Choice(["off", "on"]))
@for_option
@why_option
@config_option
@url_option
@json_option
@click.pass_context
def cache(
    ctx: click.Context,
    layer: str,
    state: str,
    for_s: float,
    why: str,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Turn a cache off in every gateway within two seconds; `exact off` ends both.

    `on` ends that: it turns nothing on that the configuration has off.
    """
    slot = f"cache.{layer}"
    if state == "off":
        answer = set_override(ctx, config, url, slot, for_s=for_s, why=why)
    else:
        answer = lift_override(ctx, config, url, slot)
    if as_json:
        print_json(answer)
        return
    until = f" until {answer['until']}" if state == "off" else " as configured"
    said(answer, f"the {layer} cache is {state}{until}")
