"""Money between its three forms: Decimal dollars, integer nano-dollars, decimal strings.

No float: a nano-dollar lost per request is a wrong bill at the end of the month.
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from functools import lru_cache

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
MAX_NANO_USD = 2**63 - 1
"""What a BIGINT holds: nine billion dollars."""

EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
"""Wide enough that products of a BIGINT and a price lose nothing before the last rounding."""

_DECIMALS = ((Decimal(100), 2), (Decimal(1), 4), (Decimal("0.1"), 6))
"""From this amount on so many; below all nine, to the nano-dollar."""


def to_nano(usd: Decimal) -> int:
    """Dollars as nano-dollars, rounded half to even.

    Raises:
        ValueError: not finite, or more than a BIGINT holds.
    """
    if not usd.is_finite():
        raise ValueError(f"{usd} is not an amount of money")
    nano = int(EXACT.multiply(usd, Decimal(NANO)).to_integral_value(ROUND_HALF_EVEN))
    if abs(nano) > MAX_NANO_USD:
        raise ValueError(f"{usd} dollars are more than the ledger can hold")
    return nano


def to_usd(nano_usd: int) -> Decimal:
    """Nano-dollars as dollars, exact."""
    return EXACT.divide(Decimal(nano_usd), Decimal(NANO))


def usd_text(nano_usd: int) -> str:
    """Nano-dollars as a plain decimal string of dollars: no exponent, no trailing zeros."""
    return _usd_text(nano_usd)


@lru_cache(maxsize=1024)
def _usd_text(nano_usd: int) -> str:
    sign = "-" if nano_usd < 0 else ""
    whole, rest = divmod(abs(nano_usd), NANO)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def short_usd(usd: str) -> str:
    """Dollars to be read at a glance: cents, or three digits that say something, down to a
    nano-dollar."""
    value = Decimal(usd)
    if value == 0:
        return "0"
    digits = 2 if abs(value) >= 1 else min(2 - value.adjusted(), 9)
    return f"{value:,.{digits}f}"


def dollars(usd: str, *, full: bool = False) -> str:
    """With its sign; in full, or short."""
    text = usd.removeprefix("-")
    return f"{'−' if usd != text else ''}${text if full else short_usd(text)}"


def decimals_of(most: Decimal) -> int:
    """How many decimals amounts below each other need whose largest is `most` dollars."""
    return next((digits for least, digits in _DECIMALS if abs(most) >= least), 9)


def parse_usd(text: str) -> int:
    """A decimal string of dollars as nano-dollars; the inverse of `usd_text`.

    Raises:
        ValueError: no plain decimal number.
    """
    try:
        usd = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in dollars, such as 12.50") from None
    return to_nano(usd)


def share(part: int, whole: int) -> float:
    """A ratio of two amounts, which is no amount: for policies and screens, never booked."""
    return part / whole
