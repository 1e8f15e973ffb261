"""The whole way: something is wrong in the ledger, and whoever should know is told."""

import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts import store
from gateway.alerts.deliver import deliver, sign
from gateway.alerts.model import Message
from gateway.alerts.settings import AlertSettings, ChannelSettings
from gateway.alerts.watch import AlertWatch
from gateway.ledger.database import open_engine, writing
from gateway.ledger.repository import Repository
from gateway.processes.aside import Aside, AsideError, answer
from gateway.settings import Settings
from tests.gateway.alerts.conftest import Mailbox
from tests.gateway.ledger.samples import NOW, settlement
from tests.gateway.webhooks import Hook


class Clock:
    """Stands, until told to go on."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def watch_of(
    settings: Settings,
    engine: AsyncEngine,
    tmp_path: Path,
    clock: Clock,
    url: str,
    aside: Aside = answer,
) -> AlertWatch:
    """One gateway's watch, telling one webhook."""
    ops = ChannelSettings(name="ops", kind="webhook", url=url)
    told = msgspec.structs.replace(settings, alerts=AlertSettings(channels=[ops], every_s=30))
    return AlertWatch(told, engine, cache_answers=None, folder=tmp_path, clock=clock, aside=aside)


async def write_requests(engine: AsyncEngine, outcome: str, count: int, name: str) -> None:
    status = 502 if outcome == "error" else 200
    rows = [
        settlement(f"{name}{n}", outcome=outcome, status=status, started_at=NOW)
        for n in range(count)
    ]
    await Repository(engine).write(rows)


async def test_errors_are_told_and_later_called_resolved(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, hook: Hook
) -> None:
    """Told once while they last, through a refusal of the channel; resolved when they are over."""
    clock = Clock(NOW + 10)
    watch = watch_of(settings, engine, tmp_path, clock, hook.url)
    await write_requests(engine, "ok", 18, "ok")
    await watch.look()
    assert hook.messages == []
    await write_requests(engine, "error", 12, "bad")
    hook.refuse = 1
    for _ in range(3):
        await watch.look()
        clock.now += 30
    (told,) = (one for one in hook.messages if one["kind"] == "error_rate")
    assert told["event"] == "opened"
    assert told["severity"] == "critical"
    assert told["title"] == "40% of the requests of five minutes failed"
    assert (told["attempt"], told["duplicate_possible"]) == (2, True)
    clock.now += 400
    for _ in range(4):
        await watch.look()
        clock.now += 30
    events = [one["event"] for one in hook.messages if one["kind"] == "error_rate"]
    assert events == ["opened", "resolved"]


async def test_hour_that_could_not_be_checked_is_checked_at_the_next_look(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, hook: Hook
) -> None:
    """Without an answer nothing is told or resolved; with one it is asked no more that hour."""
    asked = 0

    async def aside(*_: Any, **__: Any) -> dict[str, list[dict[str, str]]]:
        nonlocal asked
        asked += 1
        if asked in (1, 3):
            raise AsideError("the child was killed")
        return {"anomaly": [{"key": "anomaly:team:a", "kind": "anomaly", "title": "a: 3 times"}]}

    clock = Clock(NOW)
    watch = watch_of(settings, engine, tmp_path, clock, hook.url, aside)
    told = []
    for _ in range(3):
        await watch.look()
        told.append([message["title"] for message in hook.messages])
    clock.now += 3600
    await watch.look()
    assert told == [[], ["a: 3 times"], ["a: 3 times"]]
    assert asked == 3
    assert len(hook.messages) == 1, "the last failure resolved nothing"


async def test_dead_watch_s_message_is_delivered_by_the_next(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, hook: Hook
) -> None:
    """It died between claiming and sending: the next one sends, marked as maybe a repeat."""
    clock = Clock(NOW + 10)
    await write_requests(engine, "error", 30, "bad")
    dying = watch_of(settings, engine, tmp_path, clock, hook.url)
    await dying._tell()
    async with writing(engine) as connection:
        claimed = await store.claim(connection, now=clock.now)
    assert claimed, "and then it is gone"
    clock.now += store.CLAIM_S
    await watch_of(settings, engine, tmp_path, clock, hook.url).look()
    assert {one["attempt"] for one in hook.messages} == {2}


async def test_missing_database_is_told_without_it_and_once(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, hook: Hook
) -> None:
    """At the second look, not again by a restarted gateway; when it is back, it is resolved."""
    clock = Clock(NOW)
    nowhere = open_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    first = watch_of(settings, nowhere, tmp_path, clock, hook.url)
    await first.look()
    assert hook.messages == []
    hook.refuse = 1
    await first.look()
    await first.look()
    restarted = watch_of(settings, nowhere, tmp_path, clock, hook.url)
    for _ in range(3):
        await restarted.look()
    (told,) = hook.messages
    assert (told["kind"], told["event"], told["attempt"]) == ("ledger_outage", "opened", 2)
    back = watch_of(settings, engine, tmp_path, clock, hook.url)
    for _ in range(5):
        clock.now += 30
        await back.look()
    assert [one["event"] for one in hook.messages] == ["opened", "resolved"]
    async with engine.connect() as connection:
        (alert,) = await store.list_alerts(connection)
    assert (alert.kind, alert.opened_at) == ("ledger_outage", NOW)


async def test_one_process_of_a_folder_watches(
    settings: Settings, engine: AsyncEngine, tmp_path: Path, hook: Hook
) -> None:
    """The second one takes over when the first has gone."""
    import os

    from gateway.alerts.watch import _try_lock

    held = _try_lock(tmp_path / "alerts.lock")
    assert held is not None
    assert _try_lock(tmp_path / "alerts.lock") is None
    os.close(held)
    again = _try_lock(tmp_path / "alerts.lock")
    assert again is not None
    os.close(again)


MESSAGE = Message(
    id="a1-opened-ops",
    event="opened",
    kind="budget",
    severity="warning",
    title="Budget of team:<b>x</b>\r\nBcc: all@example.com: 80 % spent",
    text="$8 of $10.",
    facts={"spent_usd": "8"},
    opened_at=NOW,
)


async def test_webhook_is_signed_as_the_standard_says(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HMAC-SHA256 over id, time and body; the secret may be coded."""
    import httpx

    secret = b"a secret of 24 bytes...."
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + base64.b64encode(secret).decode())
    channel = ChannelSettings(name="ops", kind="webhook", url=hook.url, secret_env="HOOK_SECRET")
    async with httpx.AsyncClient() as client:
        await deliver(MESSAGE, channel, client, now=NOW)
    (body,), (headers,) = hook.bodies, hook.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == MESSAGE.id
    assert "webhook-signature" not in sign(body, MESSAGE.id, 1, None)


async def test_mail_carries_text_and_one_line_of_subject(mailbox: Mailbox) -> None:
    """A name with line breaks adds no header."""
    import httpx

    channel = ChannelSettings(
        name="finance",
        kind="mail",
        smtp=mailbox.address,
        security="none",
        sender="headgate@example.com",
        to=["a@example.com", "b@example.com"],
    )
    async with httpx.AsyncClient() as client:
        await deliver(MESSAGE, channel, client, now=NOW)
    (mail,) = mailbox.mails
    assert mail["Bcc"] is None
    assert mail["To"] == "a@example.com, b@example.com"
    assert "Budget of team:<b>x</b> Bcc: all@example.com" in " ".join(mail["Subject"].split())
    assert mail["Date"], "who sorts by it finds it"
    text = mail.get_body()
    assert text is not None
    assert "$8 of $10." in text.get_content()


async def test_slack_gets_plain_text_blocks(hook: Hook) -> None:
    """Names are no markup there; what is over says from when to when it was so."""
    import httpx

    channel = ChannelSettings(name="chat", kind="slack", url=hook.url)
    over = msgspec.structs.replace(
        MESSAGE, event="resolved", opened_at=1_800_000_000, resolved_at=1_800_000_600
    )
    async with httpx.AsyncClient() as client:
        await deliver(MESSAGE, channel, client, now=NOW)
        await deliver(over, channel, client, now=NOW)
    for told in hook.messages:
        blocks = told["blocks"]
        assert isinstance(blocks, list)
        assert {block["text"]["type"] for block in blocks} == {"plain_text"}
    assert "so from 2027-01-15 08:00 to 2027-01-15 08:10 UTC" in str(hook.messages[1]["blocks"])
