"""`headgate backend`: one engine alone, in this process's place."""

import os
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def backend(flags: tuple[str, ...]) -> None:
    """Run one engine alone, OpenAI-compatible (vLLM's flags; see `headgate backend --help`)."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "backends.server", *flags])
