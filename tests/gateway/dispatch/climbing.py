"""A gateway whose policy is a cascade over echo backends that differ in words and certainty."""

from decimal import Decimal
from pathlib import Path
from typing import Any

from backends.echo import EchoBackend
from gateway.settings import BackendSettings, PriceSettings, Settings
from tests.gateway.serving import settings

SURE, UNSURE = -0.01, -2.0
"""Log-probabilities of words: P(good) 0.99 and 0.14 where nothing is calibrated."""
PRICE = PriceSettings(input_usd_per_mtok=Decimal(1000), output_usd_per_mtok=Decimal(2000))


def ladder(folder: Path, accept: str = "judge = 'logprob', min = 0.5", **tables: Any) -> Settings:
    """Settings with the cascade low → high as the default."""
    made = settings(
        folder,
        *(
            BackendSettings(name=name, kind="echo", model=name, tier=name, price=PRICE)
            for name in ("low", "high", "spare")
        ),
        **tables,
    )
    policy = f'[default]\ncascade = ["low", "high"]\naccept = {{ {accept} }}\n'
    (folder / "policies" / "test.toml").write_text(policy)
    return made


def echoes(low: float = UNSURE, **options: dict[str, Any]) -> dict[str, EchoBackend]:
    """`low` says the wrong thing, as surely as told; `high` knows better.

    Args:
        options: of the backends, by name; of low's as `low_`.
    """
    return {
        "low": EchoBackend("low", reply="it is five", logprob=low, **options.get("low_", {})),
        "high": EchoBackend("high", reply="it is four", **options.get("high", {})),
        "spare": EchoBackend("spare", reply="yes", **options.get("spare", {})),
    }
