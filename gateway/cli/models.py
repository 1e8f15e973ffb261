"""`headgate models`: what can be served."""

import json
import subprocess
import sys

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of


@click.group()
def models() -> None:
    """What can be served."""


@models.command("list")
@config_option
@json_option
@click.pass_context
def list_models(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """The configured backends, their models and machines."""
    settings = settings_of(ctx, config)
    rows = [
        {
            "name": backend.name,
            "kind": backend.kind,
            "tier": backend.tier or backend.name,
            "model": backend.model,
            "machine": machine.name if (machine := settings.machine(backend)) else None,
        }
        for backend in settings.backends
    ]
    if as_json:
        print_json({"models": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "tier", "model", "machine", box=None)
    for row in rows:
        table.add_row(*(value or "-" for value in row.values()))
    Console().print(table)


@models.command()
@click.argument("model")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Architecture, size and revision of a model folder or bundled:NAME."""
    command = [sys.executable, "-P", "-m", "backends.models.inspect", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(done.stderr.strip().splitlines()[-1] if done.stderr else "it failed")
    facts = json.loads(done.stdout)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:24} {value}")
