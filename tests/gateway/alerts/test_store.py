"""The outbox: told once, delivered at least once, quiet when it should be."""

import asyncio
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts import store
from gateway.alerts.model import Finding
from gateway.alerts.quiet import due_at
from gateway.alerts.settings import ChannelSettings, QuietSettings
from gateway.ledger.database import writing

NOW = 1_800_000_000.0
OPS = ChannelSettings(name="ops", kind="webhook", url="http://localhost")
MONEY = ChannelSettings(name="money", kind="webhook", url="http://localhost", kinds=["budget"])
FINDING = Finding(key="error_rate", kind="error_rate", title="Half of it failed")


async def test_finding_opens_once_however_many_processes_see_it(engine: AsyncEngine) -> None:
    """Eight at once: one alert, one delivery to whoever wants its kind."""

    async def see() -> bool:
        async with writing(engine) as connection:
            return await store.open_alert(connection, FINDING, [OPS, MONEY], now=NOW)

    new = await asyncio.gather(*(see() for _ in range(8)))
    assert sum(new) == 1
    async with writing(engine) as connection:
        due = await store.claim(connection, now=NOW)
    assert [(d.channel, d.event) for d in due] == [("ops", "opened")]


async def test_what_is_gone_is_resolved_and_may_open_again(engine: AsyncEngine) -> None:
    """Resolved only after it was not seen for a while; then it is told, and may come back."""
    async with writing(engine) as connection:
        await store.open_alert(connection, FINDING, [OPS], now=NOW)
        kept = await store.resolve_alerts(
            connection, ["error_rate"], [], [OPS], now=NOW + 10, unseen_s=60
        )
        other = await store.resolve_alerts(
            connection, ["budget"], [], [OPS], now=NOW + 100, unseen_s=60
        )
        gone = await store.resolve_alerts(
            connection, ["error_rate"], [], [OPS], now=NOW + 100, unseen_s=60
        )
        again = await store.open_alert(connection, FINDING, [OPS], now=NOW + 200)
        due = await store.claim(connection, now=NOW + 200)
        listed = await store.list_alerts(connection)
    assert (kept, other) == ([], [])
    assert [alert.key for alert in gone] == ["error_rate"]
    assert again
    assert [delivery.event for delivery in due] == ["opened", "resolved", "opened"]
    assert [alert.resolved_at for alert in listed] == [None, NOW + 100]


async def test_claimed_delivery_comes_back_if_its_claimer_dies(engine: AsyncEngine) -> None:
    """Nobody else gets it meanwhile; later the attempt is counted as a second one."""
    async with writing(engine) as connection:
        await store.open_alert(connection, FINDING, [OPS], now=NOW)
        (first,) = await store.claim(connection, now=NOW)
        assert await store.claim(connection, now=NOW + store.CLAIM_S - 1) == []
        (second,) = await store.claim(connection, now=NOW + store.CLAIM_S)
        await store.delivered(connection, second, now=NOW + 61)
        assert await store.claim(connection, now=NOW + 10_000) == []
    assert (first.attempts, second.attempts) == (1, 2)
    assert first.id == second.id


async def test_channel_that_takes_nothing_is_tried_for_a_day(engine: AsyncEngine) -> None:
    """Ever more rarely, then given up, and both are to be seen."""
    async with writing(engine) as connection:
        await store.open_alert(connection, FINDING, [OPS], now=NOW)
        now, tries = NOW, 0
        while due := await store.claim(connection, now=now):
            tries += 1
            if not await store.failed(connection, due[0], "refused", now=now):
                break
            assert await store.claim(connection, now=now + 4) == []
            now += 900
        (left,) = await store.undelivered(connection)
    assert 90 < tries < 110
    assert left["given_up"]
    assert left["due_at"] is None
    assert left["error"] == "refused"


async def test_what_is_over_before_quiet_hours_end_is_one_message(engine: AsyncEngine) -> None:
    """In the morning nobody reads of trouble that the next message takes back; others hear both."""
    quiet = QuietSettings(since="22:00", until="07:00")
    asleep = ChannelSettings(name="asleep", kind="webhook", url="http://x", quiet=quiet)
    night = datetime(2026, 11, 21, 1, tzinfo=UTC).timestamp()
    mild = replace(FINDING, severity="warning")
    async with writing(engine) as connection:
        await store.open_alert(connection, mild, [OPS, asleep], now=night)
        await store.resolve_alerts(
            connection, [mild.kind], [], [OPS, asleep], now=night + 600, unseen_s=60
        )
        told = await store.claim(connection, now=night + 600)
        morning = await store.claim(connection, now=night + 6 * 3600)
    assert [(one.channel, one.event) for one in told] == [("ops", "opened"), ("ops", "resolved")]
    late = [(one.channel, one.event) for one in morning if one.channel == "asleep"]
    assert late == [("asleep", "resolved")]


@pytest.mark.parametrize(
    ("severity", "at", "due"),
    [
        ("warning", "2026-11-20T23:30:00", "2026-11-21T06:00:00"),
        ("warning", "2026-11-21T05:59:00", "2026-11-21T06:00:00"),
        ("warning", "2026-11-21T06:00:00", "2026-11-21T06:00:00"),
        ("warning", "2026-11-21T20:59:00", "2026-11-21T20:59:00"),
        ("critical", "2026-11-20T23:30:00", "2026-11-20T23:30:00"),
    ],
)
def test_quiet_hours_hold_back_what_is_not_critical(severity: str, at: str, due: str) -> None:
    """From ten to seven in Berlin (in November an hour before UTC), across midnight."""
    quiet = QuietSettings(since="22:00", until="07:00", tz="Europe/Berlin")
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
    expected = datetime.fromisoformat(due).replace(tzinfo=UTC).timestamp()
    assert due_at(quiet, severity, moment) == expected
