"""Rate limits as options, shared by commands; not a command."""

from collections.abc import Callable, Mapping
from typing import Any

import click

_OPTIONS = {
    "rpm": ("requests_per_minute", int, "Requests per minute."),
    "tpm": ("tokens_per_minute", int, "Tokens per minute, prompts and answers."),
    "concurrent": ("concurrent_requests", int, "Requests at once."),
    "usd_per_minute": ("usd_per_minute", str, "Dollars per minute, such as 0.50."),
}


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--rpm, --tpm, --concurrent and --usd-per-minute."""
    for name, (_, kind, help_) in reversed(_OPTIONS.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=help_)(command)
    return command


def limits_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """The limits out of a command's arguments, as the API takes them."""
    named = {field: given.get(name) for name, (field, _, _) in _OPTIONS.items()}
    return {field: value for field, value in named.items() if value is not None}


def limits_text(limits: Mapping[str, Any]) -> str:
    """Of limits as the API shows them, for a table's cell."""
    short = {field: name.replace("_", "-") for name, (field, _, _) in _OPTIONS.items()}
    return ", ".join(f"{short[field]} {value}" for field, value in limits.items())
