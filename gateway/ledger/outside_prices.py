"""What tokens cost elsewhere: the prices that reports measure themselves against, by name."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

from msgspec import Struct

from gateway.ledger.report_query import ReportError
from gateway.settings.prices import TokenRates


class OutsidePrice(Struct, frozen=True, kw_only=True):
    """A named price, and where it comes from."""

    name: str
    rates: TokenRates
    source: str

    @property
    def words(self) -> str:
        """`gpt-4o-mini ($0.15 in, $0.6 out per 1M tokens; …)`."""
        prices = f"${self.rates.input_usd_per_mtok} in, ${self.rates.output_usd_per_mtok} out"
        return f"{self.name} ({prices} per 1M tokens; {self.source})"


def _rates(input_: str, cached: str, output: str) -> TokenRates:
    return TokenRates(
        input_usd_per_mtok=Decimal(input_),
        cached_input_usd_per_mtok=Decimal(cached),
        output_usd_per_mtok=Decimal(output),
    )


LISTED_ON: Final = "2026-07-01"
LISTED: Final[Mapping[str, TokenRates]] = {
    "gpt-4o": _rates("2.50", "1.25", "10.00"),
    "gpt-4o-mini": _rates("0.15", "0.075", "0.60"),
    "gpt-4.1": _rates("2.00", "0.50", "8.00"),
    "gpt-4.1-mini": _rates("0.40", "0.10", "1.60"),
    "gpt-4.1-nano": _rates("0.10", "0.025", "0.40"),
}
"""Public list prices as of LISTED_ON; `[reports.prices.NAME]` replaces them and adds others."""


def find_price(
    text: str, *, own: Mapping[str, TokenRates], backends: Mapping[str, TokenRates]
) -> OutsidePrice:
    """A price by name, or in full: IN/OUT or IN/CACHED/OUT, dollars per million tokens.

    Args:
        own: `[reports.prices]`, before those of backends, before LISTED.
        backends: with prices of their own.

    Raises:
        ReportError: no such name, or no numbers.
    """
    if "/" in text:
        return OutsidePrice(name="a price", rates=_explicit(text), source="as asked for")
    dated = f"list price of {LISTED_ON}"
    lists = (("[reports.prices]", own), ("[backends.price]", backends), (dated, LISTED))
    for source, rates in lists:
        if text in rates:
            return OutsidePrice(name=text, rates=rates[text], source=source)
    names = ", ".join(sorted({*own, *backends, *LISTED}))
    raise ReportError(f"no price {text!r}; give one of {names}, or IN/OUT such as 0.15/0.60")


def _explicit(text: str) -> TokenRates:
    try:
        given = [Decimal(part) for part in text.split("/")]
        input_, *cached, output = given
    except (InvalidOperation, ValueError):
        given = []
    if len(given) not in (2, 3) or not all(one.is_finite() and one >= 0 for one in given):
        raise ReportError(
            f"price {text!r}; give IN/OUT or IN/CACHED/OUT in dollars per million tokens, "
            "such as 0.15/0.60"
        )
    return TokenRates(
        input_usd_per_mtok=input_,
        cached_input_usd_per_mtok=cached[0] if cached else None,
        output_usd_per_mtok=output,
    )
