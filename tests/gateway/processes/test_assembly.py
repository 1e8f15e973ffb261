"""Clients of configured backends: refused at start where something they need is not there."""

from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.processes.assembly import open_backend
from gateway.processes.runtime import Address
from gateway.settings import BackendSettings


def test_configured_tokenizer_must_be_there(tmp_path: Path) -> None:
    """A folder without one is refused by the backend's name; a bundled one is read."""

    def backend(tokenizer: str) -> BackendSettings:
        urls = ["http://127.0.0.1:9/v1"]
        return BackendSettings(
            name="up", kind="openai", model="m", base_urls=urls, tokenizer=tokenizer
        )

    for missing in (str(tmp_path), "bundled:none"):
        with pytest.raises(SettingsError, match="backend 'up': tokenizer: "):
            open_backend(backend(missing), Address())
    assert open_backend(backend("bundled:small"), Address()).name == "up"
