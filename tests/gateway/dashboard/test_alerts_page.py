"""Alerts on the pages and in /admin/alerts: shown to who may see them, tested by who may act."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from gateway.alerts import store
from gateway.alerts.model import Finding
from gateway.alerts.settings import AlertSettings, ChannelSettings
from gateway.ledger.database import writing
from gateway.ledger.key_store import NewKey, create_key
from gateway.settings import ServerSettings, Settings
from tests.gateway.serving import Gateway, gateway
from tests.gateway.test_pipeline import priced
from tests.gateway.webhooks import Hook, hooked

HOSTILE = "<script>alert(1)</script>"
FINDINGS = (
    Finding(key="a", kind="error_rate", severity="critical", title="9% failed", text="Look."),
    Finding(key="b", kind="anomaly", title=f"team {HOSTILE}: 3 times"),
    Finding(key="c", kind="budget_forecast", title="Budget of team:x: $9 forecast"),
    Finding(key="d", kind="budget", title="Budget of team:x: 80 % spent"),
)


@pytest.fixture
async def receiver() -> AsyncIterator[Hook]:
    """A webhook's other end."""
    async with hooked("secret-path") as made:
        yield made


def _told(folder: Path, *urls: str) -> Settings:
    channels = [
        ChannelSettings(name=f"c{n}", kind="webhook", url=url) for n, url in enumerate(urls)
    ]
    alerts = AlertSettings(channels=channels, every_s=3600)
    server = ServerSettings(auth="keys")
    return msgspec.structs.replace(priced(folder), alerts=alerts, server=server)


async def _find(served: Gateway, findings: Sequence[Finding]) -> None:
    async with writing(served.parts.engine) as connection:
        for finding in findings:
            channels = served.parts.settings.alerts.channels
            await store.open_alert(connection, finding, channels, now=1_790_000_000.0)


async def _as(served: Gateway, *scopes: str, role: str | None = None) -> None:
    new = NewKey(team="t", scopes=scopes, role=role)
    async with served.parts.engine.begin() as connection:
        _, secret = await create_key(connection, new, now=0.0)
    served.client.headers["authorization"] = f"Bearer {secret}"


async def test_firing_alerts_stand_on_the_overview_and_on_their_page(tmp_path: Path) -> None:
    """As text; budgets' only where budgets may be seen; none once resolved, but in the history."""
    async with gateway(_told(tmp_path, "http://127.0.0.1:9/secret-path")) as served:
        await _find(served, FINDINGS)
        await _as(served, "admin", "reports")
        overview = (await served.client.get("/")).text
        for words in ("9% failed", "&lt;script&gt;", "$9 forecast"):
            assert words in overview
        assert HOSTILE not in overview
        text = (await served.client.get("/alerts")).text
        assert text.count('<tr><td class="nowrap">') == 4
        assert "not tried yet" not in text
        assert HOSTILE not in text
        assert "secret-path" not in text
        saved = (await served.client.get("/alerts?csv=alerts")).text
        assert "9% failed" in saved
        await _as(served, "reports")
        seen = (await served.client.get("/")).text
        assert "9% failed" in seen
        assert "$9 forecast" not in seen
        assert 'href="/alerts"' not in seen
        async with writing(served.parts.engine) as connection:
            await store.resolve_alerts(connection, ["error_rate"], [], [], now=2e9, unseen_s=0)
        assert "9% failed" not in (await served.client.get("/")).text
        await _as(served, "admin", role="auditor")
        answer = (await served.client.get("/admin/alerts?open=1")).json()
        assert [one["kind"] for one in answer["alerts"]].count("error_rate") == 0
        assert len(answer["alerts"]) == 3
        assert answer["channels"][0]["name"] == "c0"
        assert answer["undelivered"][0]["title"]


async def test_channels_are_tested_by_who_may_act(tmp_path: Path, receiver: Hook) -> None:
    """By form and by API: what arrived and what did not, by name; written down; others get 403."""
    async with gateway(_told(tmp_path, receiver.url, "http://127.0.0.1:9/x")) as served:
        await _as(served, "admin")
        text = (await served.client.post("/alerts/test", data={"channel": "c0"})).text
        assert "c0: the test message is delivered." in text
        assert receiver.messages[0]["event"] == "test"
        tried = (await served.client.post("/admin/alerts/test", json={})).json()["results"]
        assert [(one["channel"], one["delivered"]) for one in tried] == [
            ("c0", True),
            ("c1", False),
        ]
        wrong = await served.client.post("/admin/alerts/test", json={"channel": "nobody"})
        assert (wrong.status_code, "c0, c1" in wrong.text) == (400, True)
        foreign = {"origin": "https://evil.example"}
        answer = await served.client.post("/alerts/test", data={}, headers=foreign)
        assert answer.status_code == 403
        for scopes, role in ((("reports",), None), (("admin",), "auditor"), (("admin",), "team")):
            await _as(served, *scopes, role=role)
            for path in ("/alerts/test", "/admin/alerts/test"):
                refused = await served.client.post(path, data={"channel": "c0"})
                assert refused.status_code == 403
        assert len(receiver.messages) == 2
        await _as(served, "admin")
        acts = (await served.client.get("/admin/audit")).json()["acts"]
        done = [one for one in acts if one["action"] == "alerts.test"]
        assert [one["details"]["delivered"] for one in done] == [["c0"], ["c0"]]
