"""`headgate bench`: speed figures as JSON with commit, device and workload."""

import os
import sys

import click


@click.group()
def bench() -> None:
    """Measure speed; prints JSON with commit, device and workload."""


@bench.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def engine(flags: tuple[str, ...]) -> None:
    """Prefill and decode speed of one model (see `headgate bench engine --help`)."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "backends.bench.engine", *flags])


@bench.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def kernels(flags: tuple[str, ...]) -> None:
    """Speed of every op by implementation and shape (see `headgate bench kernels --help`)."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "backends.bench.kernels", *flags])


@bench.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(flags: tuple[str, ...]) -> None:
    """Load on a running server, and how fast it answers (see `headgate bench serve --help`)."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "backends.bench.serve", *flags])
