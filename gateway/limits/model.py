"""What may be limited per minute, for a key, a user or a team."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from gateway.ledger.money import parse_usd, usd_text

MAX_PER_MINUTE = 10**15
_COUNTS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


class RateLimits(Struct, frozen=True, kw_only=True):
    """Limits of one subject; None: none. A minute slides: any sixty seconds count."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and answer; max_tokens is held while a request runs."""
    concurrent_requests: int | None = None
    nano_usd_per_minute: int | None = None


NO_LIMITS = RateLimits()


class Limited(Struct, frozen=True):
    """A subject with its limits."""

    subject: str
    """key:ID, user:NAME or team:NAME."""
    limits: RateLimits


def check_limits(given: Mapping[str, Any]) -> RateLimits:
    """Limits as an operator gives them: counts, and dollars as `usd_per_minute`.

    Raises:
        ValueError: an unknown name, or an amount that is not positive.
    """
    allowed = (*_COUNTS, "usd_per_minute")
    values: dict[str, int] = {}
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(f"limit {name!r}; allowed: {', '.join(allowed)}")
        if value is None:
            continue
        if name == "usd_per_minute":
            name, number = "nano_usd_per_minute", parse_usd(str(value))
        elif isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} {value!r}; allowed: a whole number")
        else:
            number = value
        if not 0 < number <= MAX_PER_MINUTE:
            raise ValueError(f"{name} {value!r}; allowed: more than 0, at most {MAX_PER_MINUTE}")
        values[name] = number
    return RateLimits(**values)


def stored(limits: RateLimits) -> dict[str, int] | None:
    """As the database keeps them: only those that are set; None without any."""
    found = {
        name: value
        for name in limits.__struct_fields__
        if (value := getattr(limits, name)) is not None
    }
    return found or None


def shown(limits: RateLimits) -> dict[str, Any]:
    """As commands and the API print them: the inverse of `check_limits`."""
    found: dict[str, Any] = stored(limits) or {}
    if "nano_usd_per_minute" in found:
        found["usd_per_minute"] = usd_text(found.pop("nano_usd_per_minute"))
    return found
