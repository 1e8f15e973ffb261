"""The `headgate` command: one file per group of commands, imported only when called."""

import importlib
import sys
from difflib import get_close_matches
from typing import Any

import click

_COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Run the gateway and every local backend."),
    "backend": ("backend", "Run one engine alone, OpenAI-compatible."),
    "chat": ("chat", "Chat in the terminal with a running gateway."),
    "status": ("status", "Health, load and spend on one screen."),
    "explain": ("explain", "The decision, attempts and costs of a past request."),
    "keys": ("keys", "Create, list, limit, revoke and rotate API keys."),
    "teams": ("teams", "Create, list and limit teams."),
    "users": ("users", "Create, list and remove users."),
    "budgets": ("budgets", "Set, list and remove budgets."),
    "audit": ("audit", "Who administrated what."),
    "pin": ("pin", "Let one policy version or backend decide, for a while."),
    "unpin": ("pin", "End a pin."),
    "cache": ("cache", "Turn a cache off, for a while."),
    "backends": ("backends", "Drain backends; list them."),
    "overrides": ("overrides", "What operators have changed for a while."),
    "alerts": ("alerts", "What was found wrong, and who was told."),
    "report": ("report", "Cost reports out of the ledger."),
    "policy": ("policy", "Check, explain, replay and fit routing policies."),
    "models": ("models", "What can be served, and how good it is; fetch it."),
    "quantize": ("quantize", "Make a smaller copy of a model."),
    "plan": ("plan", "Capacity and cost on paper."),
    "bench": ("bench", "Measure speed."),
    "config": ("config", "Check, show and describe the configuration."),
    "data": ("data", "Export or delete a customer's data, in every store."),
    "db": ("db", "Upgrade and check the database."),
    "doctor": ("doctor", "What is wrong with this machine."),
}
"""Command → (module in this package that defines an object of the same name, help)."""


class _LazyGroup(click.Group):
    """Lists the commands without importing them: `headgate --help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"gateway.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], _COMMANDS, 1)
        if near and args[0] not in _COMMANDS:
            ctx.fail(f"No such command {args[0]!r}; did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    help="Configuration file; else $HEADGATE_CONFIG, ./headgate.toml, the built-in default.",
)
@click.version_option(package_name="headgate", prog_name="headgate")
@click.pass_context
def cli(ctx: click.Context, config: str | None) -> None:
    """A model-routing LLM gateway with cost control."""
    ctx.obj = {"config": config}


def main(args: list[str] | None = None) -> Any:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad usage or configuration."""
    from gateway.errors import SettingsError

    try:
        return cli.main(args, prog_name="headgate", standalone_mode=True)
    except SettingsError as error:
        click.echo(f"headgate: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a disk that is full, …
        click.echo(f"headgate: {error}", err=True)
        sys.exit(1)
