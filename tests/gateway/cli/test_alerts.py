"""`headgate alerts` and `report monthly --send`: who is told, now."""

from pathlib import Path
from typing import Any

import pytest

from gateway.cli.alerts import waiting
from tests.gateway.cli.conftest import Headgate
from tests.gateway.webhooks import receiving


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "waits until 2026-11-21T06:00:00+00:00"),
        (
            {"attempts": 2, "error": "status 500"},
            "tried 2 times, status 500; again at 2026-11-21T06:00:00+00:00",
        ),
        (
            {"attempts": 99, "error": "status 500", "given_up": True, "due_at": None},
            "given up: tried 99 times, status 500",
        ),
    ],
)
def test_what_is_not_delivered_says_which_and_until_when(
    changed: dict[str, Any], said: str
) -> None:
    """Quiet hours have an end, a channel that refuses its next turn."""
    one = {
        "channel": "ops", "title": "Budget of global", "event": "opened", "attempts": 0,
        "error": "", "given_up": False, "due_at": "2026-11-21T06:00:00+00:00",
    }  # fmt: skip
    expected = f"not delivered to ops: Budget of global (opened); {said}"
    assert waiting({**one, **changed}) == expected


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
