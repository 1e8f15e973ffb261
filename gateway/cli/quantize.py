"""`headgate quantize`: make a smaller copy of a model."""

import os
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def quantize(flags: tuple[str, ...]) -> None:
    """Round a model's weights into a new folder (see `headgate quantize --help`)."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "backends.quantize", *flags])
