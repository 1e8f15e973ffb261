"""Monthly reports: due once, queued once whoever asks, delivered by the outbox."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts import store
from gateway.alerts.reports import month_due
from gateway.alerts.settings import AlertSettings, ChannelSettings, check_alerts
from gateway.alerts.watch import AlertWatch
from gateway.errors import SettingsError
from gateway.ledger.repository import Repository
from gateway.processes.aside import answer
from gateway.settings import Settings
from gateway.settings.reports import MonthlySettings
from tests.gateway.alerts.conftest import Mailbox
from tests.gateway.ledger.samples import charge, settlement
from tests.gateway.webhooks import Hook

OCTOBER = datetime(2026, 10, 14, 12, tzinfo=UTC).timestamp()
DUE = datetime(2026, 11, 1, 6, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("at", "settings", "month"),
    [
        ("2026-11-01T05:59+00:00", MonthlySettings(), None),
        ("2026-11-01T06:00+00:00", MonthlySettings(), "2026-10"),
        ("2026-11-30T23:00+00:00", MonthlySettings(), "2026-10"),
        ("2027-01-03T00:00+00:00", MonthlySettings(day=2), "2026-12"),
        ("2026-11-01T05:00+00:00", MonthlySettings(tz="Asia/Kolkata"), "2026-10"),
        ("2026-10-31T23:30+00:00", MonthlySettings(at="00:15", tz="Europe/Berlin"), "2026-10"),
    ],
)
def test_month_is_due_from_its_moment_on(
    at: str, settings: MonthlySettings, month: str | None
) -> None:
    """In the zone of the settings; until the month's end, so that a gateway may be away."""
    assert month_due(settings, datetime.fromisoformat(at).timestamp()) == month


async def _october(engine: AsyncEngine) -> None:
    booked = charge("r1", at=OCTOBER, cost_nano_usd=2 * 10**9)
    await Repository(engine).write(
        [
            settlement("r1", team="search", started_at=OCTOBER, charges=(booked,)),
            settlement("r2", team="<b>ads</b>", started_at=OCTOBER, charges=()),
        ]
    )


def _watch(
    settings: Settings, engine: AsyncEngine, folder: Path, channels: list[ChannelSettings]
) -> AlertWatch:
    """One gateway process on a host of its own."""
    folder.mkdir(exist_ok=True)
    alerts = AlertSettings(channels=channels, error_rate=None, availability=None, anomalies=False)
    told = msgspec.structs.replace(settings, alerts=alerts)
    return AlertWatch(
        told, engine, cache_answers=None, folder=folder, clock=lambda: DUE, aside=answer
    )


async def test_report_goes_once_to_each_channel_through_restarts_and_processes(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, hook: Hook
) -> None:
    """Everybody's and each team's; a second host and a restart add nothing, a new channel does."""
    await _october(engine)
    ops = ChannelSettings(name="ops", kind="webhook", url=hook.url, monthly=["global", "team:*"])
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
        watch = _watch(settings, engine, folder, [ops])
        await watch.look()
        await watch.look()
    assert sorted(str(one["title"]) for one in hook.messages) == [
        "Costs of all teams in 2026-10: $2.00",
        "Costs of team <b>ads</b> in 2026-10: $0",
        "Costs of team search in 2026-10: $2.00",
    ]
    chat = ChannelSettings(name="chat", kind="slack", url=hook.url, monthly=["team:search"])
    await _watch(settings, engine, tmp_path / "a", [ops, chat]).look()
    assert "blocks" in hook.messages[-1]
    async with engine.connect() as connection:
        assert await store.list_alerts(connection) == [], "a report is no alert"


async def test_report_is_mailed_as_a_file(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, mailbox: Mailbox
) -> None:
    """The figures as text, the whole as HTML that is attached; names are no markup."""
    await _october(engine)
    mail = ChannelSettings(
        name="finance", kind="mail", smtp=mailbox.address, security="none",
        sender="headgate@example.com", to=["a@example.com"], monthly=["team:<b>ads</b>"],
    )  # fmt: skip
    await _watch(settings, engine, tmp_path, [mail]).look()
    (sent,) = mailbox.mails
    (attached,) = sent.iter_attachments()
    assert attached.get_content_type() == "text/html"
    assert attached.get_filename() == "Costs-of-team-b-ads-b-in-2026-10.html"
    assert "&lt;b&gt;ads&lt;/b&gt;: 2026-10" in attached.get_content()
    text = sent.get_body(("plain",))
    assert text is not None
    assert "for 1 requests" in text.get_content()


def test_report_scopes_are_checked() -> None:
    """As budgets name them."""
    wrong = ChannelSettings(name="ops", kind="webhook", url="http://x", monthly=["search"])
    with pytest.raises(SettingsError, match=r"global, team:NAME or team:\*"):
        check_alerts(AlertSettings(channels=[wrong]), "here")
