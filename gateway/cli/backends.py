"""`headgate backends`: list them, take them out, let them back in."""

import click

from gateway.cli.common import (
    config_option,
    gateway_url,
    get_json,
    json_option,
    print_json,
    settings_of,
    url_option,
)
from gateway.cli.database import table
from gateway.cli.switches import for_option, lift_override, said, set_override, why_option


@click.group()
def backends() -> None:
    """Drain backends; list them."""


@backends.command("list")
@config_option
@url_option
@json_option
@click.pass_context
def list_(ctx: click.Context, config: str | None, url: str | None, as_json: bool) -> None:
    """The backends of a running gateway, and their condition."""
    base = gateway_url(settings_of(ctx, config), url)
    found = get_json(base, "/admin/backends")["backends"]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            one["name"],
            one["tier"],
            "yes" if one["ready"] else f"no: {one['detail']}",
            one["drained"] or "",
            str(one["in_flight"]),
        ]
        for one in found
    ]
    table(["backend", "tier", "ready", "drained", "in flight"], rows, right={"in flight"})


@backends.command()
@click.argument("name")
@for_option
@why_option
@config_option
@url_option
@json_option
@click.pass_context
def drain(
    ctx: click.Context,
    name: str,
    for_s: float,
    why: str,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Send it no new requests, in every gateway within two seconds; those it has go on."""
    answer = set_override(ctx, config, url, f"drain.{name}", for_s=for_s, why=why)
    if as_json:
        print_json(answer)
        return
    said(answer, f"{name} is drained until {answer['until']}")


@backends.command()
@click.argument("name")
@config_option
@url_option
@json_option
@click.pass_context
def undrain(
    ctx: click.Context, name: str, config: str | None, url: str | None, as_json: bool
) -> None:
    """Let it take requests again."""
    answer = lift_override(ctx, config, url, f"drain.{name}")
    if as_json:
        print_json(answer)
        return
    said(answer, f"{name} takes requests again")
