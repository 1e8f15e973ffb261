"""`headgate config`: check, show, schema."""

import click
import msgspec

from gateway.cli.common import config_option, json_option, log_to_stderr, print_json, settings_of
from gateway.errors import SettingsError


@click.group()
def config() -> None:
    """Check, show and describe the configuration."""


@config.command()
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Read the configuration and its policy; exit 2 and say what is wrong if anything is."""
    from gateway.routing.policy_book import PolicyBook

    log_to_stderr()
    try:
        settings = settings_of(ctx, config)
        PolicyBook(settings.routing, settings.targets())
    except SettingsError as error:
        if not as_json:
            raise
        print_json({"ok": False, "error": str(error)})
        ctx.exit(2)
    source = settings.source or "built-in"
    if as_json:
        print_json({"ok": True, "source": source})
    else:
        click.echo(f"{source}: ok, {len(settings.backends)} backends")


@config.command()
@config_option
@json_option
@click.pass_context
def show(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Print the settings in force, defaults filled in and passwords left out (always JSON)."""
    from gateway.settings import shown_url

    shown = msgspec.to_builtins(settings_of(ctx, config))
    shown["database"]["url"] = shown_url(shown["database"]["url"])
    shown["cache"]["redis"] = shown_url(shown["cache"]["redis"])
    print_json(shown)


@config.command()
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON Schema of headgate.toml."""
    from gateway.settings import schema as settings_schema

    print_json(settings_schema())
