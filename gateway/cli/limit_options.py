"""Rate limits as options, shared by commands; not a command."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gateway.limits.model import RateLimits

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


def limits_of(given: dict[str, Any]) -> "RateLimits":
    """The limits out of a command's arguments. Raises ValueError."""
    from gateway.limits.model import check_limits

    return check_limits({field: given.get(name) for name, (field, _, _) in _OPTIONS.items()})


def limits_text(limits: "RateLimits") -> str:
    """For a table's cell."""
    from gateway.limits.model import shown

    short = {field: name.replace("_", "-") for name, (field, _, _) in _OPTIONS.items()}
    return ", ".join(f"{short[field]} {value}" for field, value in shown(limits).items())
