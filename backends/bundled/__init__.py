"""The demo family that ships with Headgate: three tiny chat models and their recipe."""

from pathlib import Path
from typing import Final

BUNDLED_MODELS: Final = ("nano", "small", "base")


class UnknownBundledModelError(LookupError):
    """A name that is none of the models in this folder."""


def bundled_path(name: str) -> Path:
    """Say where a shipped model lies.

    Args:
        name: `nano`, `small` or `base`.

    Returns:
        The model's folder, in the Hugging Face layout.

    Raises:
        UnknownBundledModelError: no model of that name ships with Headgate.
    """
    if name not in BUNDLED_MODELS:
        known = ", ".join(BUNDLED_MODELS)
        raise UnknownBundledModelError(f"no bundled model {name!r}; choose one of: {known}")
    return Path(__file__).resolve().parent / name
