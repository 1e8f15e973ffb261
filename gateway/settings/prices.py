"""What machines and tokens cost: the tables of headgate.toml that hold prices."""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta, Struct, field

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_MOST_USD = {"purchase_usd": 10**9, "residual_usd": 10**9}
"""Others: 10**6; the ledger counts nano-dollars in 63 bits, enough for a year at such a price."""
Clock = Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
"""HH:MM"""


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: immutable, unknown keys refused."""


class OwnedSettings(_Table, frozen=True, kw_only=True):
    """[machines.owned]: what a machine of one's own costs, spread over its life, and its power."""

    purchase_usd: Decimal
    residual_usd: Decimal = Decimal(0)
    """What it is worth in the end."""
    years: Decimal
    """Until then; written off in equal hours."""
    kilowatts: Decimal = Decimal(0)
    """Mean draw, all of its devices."""
    usd_per_kwh: Decimal = Decimal(0)
    pue: Decimal = Decimal(1)
    """Power of the building over power of the machine."""
    hosting_usd_per_month: Decimal = Decimal(0)
    """Space, network, people."""


class HourPriceSettings(_Table, frozen=True, kw_only=True):
    """[[machines.hours]]: a price at some times of day; the first that holds counts."""

    from_: Clock = field(name="from")
    to: Clock
    """Exclusive; before `from`: passes midnight. The same as `from`: all day."""
    days: list[Day] | None = None
    """On which the window begins; None: every day."""
    tz: str = "UTC"
    """IANA name."""
    usd_per_hour: Decimal


class SpotPriceSettings(_Table, frozen=True, kw_only=True):
    """[[machines.spot]]: the price from a moment on, until the next one's."""

    since: datetime
    """With an offset, such as 2026-11-01T00:00:00Z."""
    usd_per_hour: Decimal


class MachineSettings(_Table, frozen=True, kw_only=True):
    """[[machines]]: something paid by the hour.

    Its price is the newest of `spot`, else the first of `hours` that holds, else that of `owned`,
    else `usd_per_hour`.
    """

    name: str
    type: str = "cpu"
    """h200, l4, …: reported on."""
    devices: Annotated[int, Meta(ge=1)] = 1
    """How many of that type it has; every price is that of the whole machine."""
    usd_per_hour: Decimal = Decimal("0.10")
    """Booked once, whoever shares the machine."""
    owned: OwnedSettings | None = None
    hours: list[HourPriceSettings] = field(default_factory=list)
    spot: list[SpotPriceSettings] = field(default_factory=list)
    """In the order of time."""


class TokenRates(_Table, frozen=True, kw_only=True):
    """Dollars per million tokens."""

    input_usd_per_mtok: Decimal = Decimal(0)
    cached_input_usd_per_mtok: Decimal | None = None
    """None: as other input."""
    output_usd_per_mtok: Decimal = Decimal(0)
    reasoning_usd_per_mtok: Decimal | None = None
    """Of the output, tokens thought but not shown; None: as other output."""
    batch_input_usd_per_mtok: Decimal | None = None
    """Of lines of `/v1/batches`; None: as others."""
    batch_output_usd_per_mtok: Decimal | None = None


class DatedRates(TokenRates, frozen=True, kw_only=True):
    """[[backends.price.history]]: rates from a moment on, until the next one's."""

    since: datetime
    """With an offset, such as 2026-11-01T00:00:00Z."""


class PriceSettings(TokenRates, frozen=True, kw_only=True):
    """[backends.price]: for servers not on a machine of ours. The rates here hold before the first
    of `history`."""

    history: list[DatedRates] = field(default_factory=list)
    """In the order of time."""
    batch_service_tier: str | None = None
    """Sent as `service_tier` with lines of batches, where that is what makes the upstream bill them
    at its batch rates (OpenAI: flex). None: they are sent like others, and a list's batch rates,
    which are for batches sent whole, do not hold."""
    litellm_file: str | None = None
    """A price list in LiteLLM's JSON format, read at start; it replaces the rates above."""
    litellm_model: str | None = None
    """The list's name for the model; None: the backend's `model`."""


Refuse = Callable[[str, Any, str], None]
"""Called with key path, value and what is allowed; raises."""


def check_machine(machine: MachineSettings, key: str, refuse: Refuse) -> None:
    """What types alone cannot say of a machine's prices."""
    _check_amounts(machine, ("usd_per_hour",), key, refuse)
    if machine.owned is not None:
        _check_amounts(machine.owned, machine.owned.__struct_fields__, f"{key}.owned", refuse)
        if machine.owned.years < Decimal("0.01"):
            refuse(f"{key}.owned.years", str(machine.owned.years), "0.01 or more")
        if machine.owned.pue < 1:
            refuse(f"{key}.owned.pue", str(machine.owned.pue), "1 or more")
        if machine.owned.residual_usd > machine.owned.purchase_usd:
            refuse(
                f"{key}.owned.residual_usd", str(machine.owned.residual_usd), "up to purchase_usd"
            )
    for index, price in enumerate(machine.hours):
        where = f"{key}.hours[{index}]"
        _check_amounts(price, ("usd_per_hour",), where, refuse)
        if price.days == []:
            refuse(f"{where}.days", price.days, "one day or more; left out: every day")
        try:
            ZoneInfo(price.tz)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            refuse(f"{where}.tz", price.tz, "an IANA name such as Europe/Berlin")
    for index, spot in enumerate(machine.spot):
        _check_amounts(spot, ("usd_per_hour",), f"{key}.spot[{index}]", refuse)
    _check_order([spot.since for spot in machine.spot], f"{key}.spot", refuse)


def check_price(price: PriceSettings, key: str, refuse: Refuse) -> None:
    """What types alone cannot say of token prices."""
    check_rates(price, key, refuse)
    for index, dated in enumerate(price.history):
        check_rates(dated, f"{key}.history[{index}]", refuse)
    _check_order([dated.since for dated in price.history], f"{key}.history", refuse)
    if price.litellm_model is not None and price.litellm_file is None:
        refuse(f"{key}.litellm_model", price.litellm_model, "only beside litellm_file")


def check_rates(rates: TokenRates, key: str, refuse: Refuse) -> None:
    """No rate is negative or beyond what can be booked."""
    _check_amounts(rates, TokenRates.__struct_fields__, key, refuse)


def _check_amounts(table: Struct, names: Sequence[str], key: str, refuse: Refuse) -> None:
    for name in names:
        amount = getattr(table, name)
        most = _MOST_USD.get(name, 10**6)
        if amount is not None and not (amount.is_finite() and 0 <= amount <= most):
            refuse(f"{key}.{name}", str(amount), f"0 or more, up to {most}")


def _check_order(moments: Sequence[datetime], key: str, refuse: Refuse) -> None:
    for index, moment in enumerate(moments):
        if moment.tzinfo is None:
            refuse(f"{key}[{index}].since", str(moment), "with an offset: 2026-11-01T00:00:00Z")
        elif index and moment <= moments[index - 1]:
            refuse(f"{key}[{index}].since", str(moment), "later than the one before")
