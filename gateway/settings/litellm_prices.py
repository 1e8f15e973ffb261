"""Token prices out of a file in LiteLLM's format (`model_prices_and_context_window.json`).

The file is one that the operator names: nothing is fetched. Prices there are dollars per token.
Rates that grow with the length of the prompt (`…_above_128k_tokens`, `tiered_pricing`), unless all
are the same, prices of each request, and answers without a price are refused rather than billed
wrongly.
"""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.errors import SettingsError
from gateway.settings.prices import TokenRates

_MTOK = 1_000_000
_RATES = {
    "input_usd_per_mtok": "input_cost_per_token",
    "cached_input_usd_per_mtok": "cache_read_input_token_cost",
    "output_usd_per_mtok": "output_cost_per_token",
    "reasoning_usd_per_mtok": "output_cost_per_reasoning_token",
    "batch_input_usd_per_mtok": "input_cost_per_token_batches",
    "batch_output_usd_per_mtok": "output_cost_per_token_batches",
}
_ANSWERLESS = ("embedding", "rerank", "moderation")
"""Modes in which no token is answered."""
_BY_REQUEST = ("input_cost_per_request", "output_cost_per_request", "input_cost_per_query")


def read_rates(file: Path, model: str) -> TokenRates:
    """The rates of one model, exactly as written.

    Raises:
        SettingsError: no such file or model, no JSON, no price, or not by tokens alone.
    """
    try:
        listed = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: no price list in LiteLLM's JSON format: {error}") from None
    found = listed.get(model) if isinstance(listed, dict) else None
    if not isinstance(found, dict):
        raise SettingsError(f"{file}: no model {model!r}; name one of its keys by litellm_model")
    for key, value in found.items():
        on = _depends_on(key, value, found)
        if on is not None:
            raise SettingsError(
                f"{file}: {model!r}: {key} makes the price depend on {on}, which is "
                "not supported; give rates of your own under [backends.price]"
            )
    rates = {ours: _per_mtok(file, model, theirs, found) for ours, theirs in _RATES.items()}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    needed = ["input_usd_per_mtok"]
    if found.get("mode") not in _ANSWERLESS:
        needed.append("output_usd_per_mtok")
    for name in needed:
        if name not in given:
            raise SettingsError(
                f"{file}: {model!r} has no {_RATES[name]}{_priced_by(found)}; give rates of your "
                "own under [backends.price]"
            )
    return TokenRates(**given)


def _depends_on(key: str, value: Any, found: dict[str, Any]) -> str | None:
    """What else than tokens an entry lets the price depend on."""
    if not value:
        return None
    base = key.partition("_above_")[0]
    if base != key and base in _RATES.values() and value != found.get(base):
        return "the prompt's length"
    if key == "tiered_pricing" and not (isinstance(value, list) and len(value) == 1):
        return "the prompt's length"
    return "the number of requests" if key in _BY_REQUEST else None


def _priced_by(found: dict[str, Any]) -> str:
    """What it has instead, such as prices by character."""
    others = sorted(key for key, value in found.items() if "_cost_per_" in key and value)
    return f", but {', '.join(others)}" if others else ""


def _per_mtok(file: Path, model: str, key: str, found: dict[str, Any]) -> Decimal | None:
    value = found.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 1:
        shown = f"{value}" if isinstance(value, Decimal) else repr(value)
        raise SettingsError(f"{file}: {model!r}: {key}: {shown}: a number of dollars, 0 to 1")
    return Decimal(value) * _MTOK
