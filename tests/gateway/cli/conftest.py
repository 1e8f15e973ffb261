"""The `headgate` command on a state folder of its own, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli


class Headgate:
    """Runs commands; their database is SQLite in the state folder."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.database_url = f"sqlite+aiosqlite:///{state_dir / 'headgate.db'}"

    def run(self, *args: str) -> Result:
        """A command's outcome; a traceback fails the test."""
        result = CliRunner().invoke(cli, args)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *args: str) -> Any:
        """A successful command's output, parsed."""
        result = self.run(*args)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def headgate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Headgate:
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(tmp_path / "state"))
    for name in ("CONFIG", "DATABASE_URL", "URL", "API_KEY", "ADMIN_KEY"):
        monkeypatch.delenv(f"HEADGATE_{name}", raising=False)
    monkeypatch.setenv("HEADGATE_PORT", "9")  # no gateway of somebody else's
    monkeypatch.chdir(tmp_path)
    return Headgate(tmp_path / "state")
