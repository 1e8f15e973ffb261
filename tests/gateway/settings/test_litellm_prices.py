"""Price lists in LiteLLM's format, read without losing a digit."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.settings import load
from gateway.settings.litellm_prices import read_rates
from gateway.settings.prices import TokenRates

LISTED = {
    "sample_spec": {"input_cost_per_token": 0.0, "litellm_provider": "one of them"},
    "their-model": {
        "max_input_tokens": 128000,
        "input_cost_per_token": 1.5e-07,
        "cache_read_input_token_cost": 7.5e-08,
        "output_cost_per_token": 6e-07,
        "output_cost_per_reasoning_token": 4e-07,
        "input_cost_per_token_batches": 7.5e-08,
        "output_cost_per_token_batches": 3e-07,
        "litellm_provider": "openai",
        "mode": "chat",
        "supports_vision": True,
    },
}
RATES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


def _file(folder: Path, listed: Any) -> Path:
    file = folder / "prices.json"
    file.write_text(json.dumps(listed))
    return file


def test_rates_are_read_exactly(tmp_path: Path) -> None:
    """Dollars per token become dollars per million, digit by digit."""
    assert read_rates(_file(tmp_path, LISTED), "their-model") == TokenRates(
        input_usd_per_mtok=Decimal("0.15"),
        cached_input_usd_per_mtok=Decimal("0.075"),
        output_usd_per_mtok=Decimal("0.6"),
        reasoning_usd_per_mtok=Decimal("0.4"),
        batch_input_usd_per_mtok=Decimal("0.075"),
        batch_output_usd_per_mtok=Decimal("0.3"),
    )


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ({"other": {}}, "no model 'm'"),
        ([], "no model 'm'"),
        ({"m": {"mode": "chat"}}, "input_cost_per_token"),
        ({"m": {"input_cost_per_token": "free"}}, "'free'"),
        ({"m": {"input_cost_per_token": -1}}, "-1"),
        ({"m": {"input_cost_per_token": True}}, "True"),
        (
            {"m": {"input_cost_per_token": 1e-6, "input_cost_per_token_above_128k_tokens": 2e-6}},
            "above_128k",
        ),
        ({"m": {"input_cost_per_token": 1e-6}}, "no output_cost_per_token"),
        (
            {"m": {"input_cost_per_character": 1e-6, "output_cost_per_character": 1e-6}},
            "no input_cost_per_token, but input_cost_per_character",
        ),
        ({"m": {**RATES, "tiered_pricing": [{"range": [0, 1]}, {"range": [1, 2]}]}}, "length"),
        ({"m": {**RATES, "input_cost_per_request": 0.01}}, "number of requests"),
        ({"m": {**RATES, "input_cost_per_token": 3}}, "3: a number of dollars, 0 to 1"),
        ({"m": {**RATES, "input_cost_per_token": -1e-7}}, ": -1E-7: a number"),
    ],
)
def test_list_that_cannot_be_billed_by_is_refused(tmp_path: Path, listed: Any, named: str) -> None:
    """The error names the file, the model and what is wrong."""
    with pytest.raises(SettingsError, match=named):
        read_rates(_file(tmp_path, listed), "m")


@pytest.mark.parametrize(
    "entry",
    [
        {**RATES, "input_cost_per_token_above_128k_tokens": None, "input_cost_per_request": 0},
        {**RATES, "input_cost_per_token_above_128k_tokens": 1e-6},
        {"input_cost_per_token": 1e-6, "mode": "embedding"},
    ],
)
def test_entries_that_say_nothing_more_are_taken(tmp_path: Path, entry: Any) -> None:
    """Null and 0 are no price, and embeddings have no answers."""
    rates = read_rates(_file(tmp_path, {"m": entry}), "m")
    assert rates.input_usd_per_mtok == Decimal(1)
    assert rates.output_usd_per_mtok == (2 if "output_cost_per_token" in entry else 0)


def test_configuration_takes_its_prices_from_the_list(tmp_path: Path) -> None:
    """The file is found beside the configuration; the backend's own model is the list's name."""
    _file(tmp_path, LISTED)
    config = tmp_path / "headgate.toml"
    config.write_text(
        '[[backends]]\nname = "outside"\nkind = "openai"\nmodel = "their-model"\n'
        'base_urls = ["http://x/v1"]\n[backends.price]\nlitellm_file = "prices.json"\n'
    )
    price = load(config, env={}).backends[0].price
    assert price is not None
    assert price.output_usd_per_mtok == Decimal("0.6")
    assert price.batch_output_usd_per_mtok is None, "our lines are no batch that is sent whole"
    config.write_text(config.read_text() + 'batch_service_tier = "flex"\n')
    price = load(config, env={}).backends[0].price
    assert price is not None
    assert price.batch_output_usd_per_mtok == Decimal("0.3")
    config.write_text(config.read_text().replace("their-model", "unknown"))
    with pytest.raises(SettingsError, match="no model 'unknown'"):
        load(config, env={})


def test_missing_list_is_refused(tmp_path: Path) -> None:
    """A file that is not there, or no JSON, is named."""
    with pytest.raises(SettingsError, match="gone"):
        read_rates(tmp_path / "gone.json", "m")
