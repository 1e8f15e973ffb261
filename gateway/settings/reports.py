"""[reports]: what savings are measured against, and when monthly reports go out."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta, Struct, field

from gateway.ledger.outside_prices import find_price
from gateway.ledger.report_query import ReportError
from gateway.settings.prices import Clock, Refuse, TokenRates, check_rates


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: immutable, unknown keys refused."""


class MonthlySettings(_Table, frozen=True, kw_only=True):
    """[reports.monthly]: when the month before is reported to the channels that ask for it."""

    day: Annotated[int, Meta(ge=1, le=28)] = 1
    """Of the month; with the gateway away, as soon as one runs again."""
    at: Clock = "06:00"
    tz: str = "UTC"
    """IANA name; of this moment, and in which the month begins and ends."""


class ReportSettings(_Table, frozen=True, kw_only=True):
    """[reports]"""

    baseline_machines: dict[str, Decimal] = field(default_factory=dict)
    """Machine → how many of it would run without caches and routing; against these, reports say
    what was really saved."""
    against: str = "gpt-4o-mini"
    """A name of `prices`, a backend with prices, a listed model, or IN/OUT in dollars per million
    tokens: what the same requests would have cost there."""
    largest: str | None = None
    """Backend that would answer everything without routing; None: the dearest per token."""
    prices: dict[str, TokenRates] = field(default_factory=dict)
    """Name → rates, beside the shipped list."""
    monthly: MonthlySettings = field(default_factory=MonthlySettings)


def check_reports(
    reports: ReportSettings,
    machines: Sequence[str],
    backends: Mapping[str, TokenRates | None],
    refuse: Refuse,
) -> None:
    """What types alone cannot say.

    Args:
        backends: name → price, None where a machine is paid.
    """
    for name, count in reports.baseline_machines.items():
        if name not in machines:
            refuse("reports.baseline_machines", name, f"one of {machines}")
        if not (count.is_finite() and count >= 0):
            refuse(f"reports.baseline_machines.{name}", str(count), "0 or more")
    if reports.largest is not None and reports.largest not in backends:
        refuse("reports.largest", reports.largest, f"one of {list(backends)}")
    for name, rates in reports.prices.items():
        check_rates(rates, f"reports.prices.{name}", refuse)
    try:
        ZoneInfo(reports.monthly.tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        refuse("reports.monthly.tz", reports.monthly.tz, "an IANA name such as Europe/Berlin")
    priced = {name: rates for name, rates in backends.items() if rates is not None}
    try:
        find_price(reports.against, own=reports.prices, backends=priced)
    except ReportError as error:
        refuse("reports.against", reports.against, str(error))
