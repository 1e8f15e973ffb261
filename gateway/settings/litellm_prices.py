"""Token prices out of a file in LiteLLM's format (`model_prices_and_context_window.json`).

The file is one that the operator names: nothing is fetched. Prices there are dollars per token.
Rates that grow with the length of the prompt (`…_above_128k_tokens`) are refused rather than
billed wrongly, unless all are the same.
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


def read_rates(file: Path, model: str) -> TokenRates:
    """The rates of one model, exactly as written.

    Raises:
        SettingsError: no such file or model, no JSON, no price, or one that depends on length.
    """
    try:
        listed = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: no price list in LiteLLM's JSON format: {error}") from None
    found = listed.get(model) if isinstance(listed, dict) else None
    if not isinstance(found, dict):
        raise SettingsError(f"{file}: no model {model!r}; name one of its keys by litellm_model")
    for key, value in found.items():
        base = key.partition("_above_")[0]
        if base != key and base in _RATES.values() and value != found.get(base):
            raise SettingsError(
                f"{file}: {model!r}: {key} makes the price depend on the prompt's length, which is "
                "not supported; give rates of your own under [backends.price]"
            )
    rates = {ours: _per_mtok(file, model, theirs, found) for ours, theirs in _RATES.items()}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    if "input_usd_per_mtok" not in given:
        raise SettingsError(f"{file}: {model!r} has no input_cost_per_token")
    return TokenRates(**given)


def _per_mtok(file: Path, model: str, key: str, found: dict[str, Any]) -> Decimal | None:
    value = found.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value < 0:
        raise SettingsError(f"{file}: {model!r}: {key}: {value!r}: a number, 0 or more")
    return Decimal(value) * _MTOK
