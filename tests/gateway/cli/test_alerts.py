"""`headgate alerts` and `report monthly --send`: who is told, now."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.cli.conftest import Headgate


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.messages.append(msgspec.json.decode(body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def _hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    messages: list[dict[str, Any]] = []
    server.messages = messages  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", messages
    finally:
        server.shutdown()
        server.server_close()


def test_channels_are_tested_and_reports_sent_by_hand(
    headgate: Headgate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each channel by name, failures by exit code; a month's report goes where it is told to."""
    with _hook() as (url, messages):
        config = tmp_path / "told.toml"
        config.write_text(
            f'[[alerts.channels]]\nname = "ops"\nkind = "webhook"\nurl = "{url}"\n'
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
    assert [one["event"] for one in messages] == ["test", "test", "report"]
    assert messages[-1]["title"] == "Costs of all teams in 2001-09: $0"
    assert messages[-1]["html"].startswith("<!doctype html>")
