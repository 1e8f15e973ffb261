"""`headgate config`: check, show, schema."""

import os
from collections.abc import Iterator

import click
import msgspec

from gateway.cli.common import config_option, json_option, log_to_stderr, print_json, settings_of
from gateway.errors import SettingsError
from gateway.settings import Settings


@click.group()
def config() -> None:
    """Check, show and describe the configuration."""


@config.command()
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Read the configuration and its policy; exit 2 and say what is wrong if anything is.

    Variables that it names and that are not set here are told, too: the gateway may have others.
    """
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
    warnings = [f"{key}: ${name} is not set here" for key, name in _unset_variables(settings)]
    if as_json:
        print_json({"ok": True, "source": source, "warnings": warnings})
        return
    for warning in warnings:
        click.echo(f"headgate: {warning}", err=True)
    click.echo(f"{source}: ok, {len(settings.backends)} backends")


def _unset_variables(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys of the configuration that name variables which this environment lacks."""
    named = {"server.admin_key_env": settings.server.admin_key_env}
    for index, backend in enumerate(settings.backends):
        named[f"backends[{index}].api_key_env"] = backend.api_key_env
    return ((key, name) for key, name in named.items() if name and not os.environ.get(name))


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
