"""`headgate alerts` and `report monthly --send`: who is told, now."""

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Headgate
from tests.gateway.webhooks import receiving


def test_channels_are_tested_and_reports_sent_by_hand(
    headgate: Headgate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each channel by name, failures by exit code; a month's report goes where it is told to."""
    with receiving() as receiver:
        config = tmp_path / "told.toml"
        config.write_text(
            f'[[alerts.channels]]\nname = "ops"\nkind = "webhook"\nurl = "{receiver.url}"\n'
            '[[alerts.channels]]\nname = "gone"\nkind = "slack"\nurl = "http://127.0.0.1:9/"\n'
        )
        monkeypatch.setenv("HEADGATE_CONFIG", str(config))
        done = headgate.run("alerts", "test", "ops")
        assert (done.exit_code, done.stdout) == (0, "ops: delivered\n")
        both = headgate.run("alerts", "test")
        assert (both.exit_code, "gone: not delivered" in both.stderr) == (1, True)
        assert headgate.run("alerts", "test", "nobody").exit_code == 2
        assert headgate.json("alerts", "list", "--json") == {"alerts": [], "undelivered": []}
        sent = headgate.run("report", "monthly", "2001-09", "--send", "ops")
        assert (sent.exit_code, sent.stdout) == (0, "ops: delivered\n")
        assert headgate.run("report", "monthly", "2001-09", "--send", "gone").exit_code == 1
        assert headgate.run("report", "monthly", "2001-09", "--send", "x").exit_code == 2
    assert [one["event"] for one in receiver.messages] == ["test", "test", "report"]
    assert receiver.messages[-1]["title"] == "Costs of all teams in 2001-09: $0"
    assert receiver.messages[-1]["html"].startswith("<!doctype html>")
