"""Alerts as the admin path, the command line and the dashboard show them; and test messages."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx
from msgspec import Struct

from gateway.alerts.deliver import NotDelivered, deliver
from gateway.alerts.model import Alert, Message, moment
from gateway.alerts.settings import ChannelSettings
from gateway.alerts.store import list_alerts, undelivered

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Tested(Struct, frozen=True, kw_only=True):
    """What became of a test message."""

    channel: str
    delivered: bool
    error: str = ""


async def shown_alerts(
    connection: "AsyncConnection", *, open_only: bool, limit: int
) -> dict[str, Any]:
    """The newest alerts, and deliveries that wait or were given up, as JSON."""
    found = await list_alerts(connection, open_only=open_only, limit=limit)
    return {
        "alerts": [shown(alert) for alert in found],
        "undelivered": await undelivered(connection),
    }


def shown(alert: Alert) -> dict[str, Any]:
    """As JSON."""
    return {
        "id": alert.id,
        "kind": alert.kind,
        "severity": alert.severity,
        "title": alert.title,
        "text": alert.text,
        "facts": dict(alert.facts),
        "opened_at": moment(alert.opened_at),
        "seen_at": moment(alert.seen_at),
        "resolved_at": None if alert.resolved_at is None else moment(alert.resolved_at),
    }


def shown_channel(channel: ChannelSettings) -> dict[str, Any]:
    """Whom it tells and about what; never its address, which may be a secret."""
    quiet = channel.quiet
    return {
        "name": channel.name,
        "kind": channel.kind,
        "kinds": channel.kinds,
        "monthly": channel.monthly,
        "quiet": None if quiet is None else f"{quiet.since} to {quiet.until}, {quiet.tz}",
    }


async def send_tests(channels: Sequence[ChannelSettings]) -> list[Tested]:
    """A test message to each, all at once; a test is delivered now or not at all."""
    async with httpx.AsyncClient() as client:
        return await asyncio.gather(*(_send_test(channel, client) for channel in channels))


async def _send_test(channel: ChannelSettings, client: httpx.AsyncClient) -> Tested:
    now = time.time()
    message = Message(
        id=f"{uuid.uuid4().hex}-test-{channel.name}",
        event="test",
        kind="test",
        severity="info",
        title="Headgate can reach this channel",
        text="Nothing is wrong. Somebody asked for this test.",
        opened_at=now,
    )
    try:
        await deliver(message, channel, client, now=now)
    except NotDelivered as error:
        return Tested(channel=channel.name, delivered=False, error=str(error))
    return Tested(channel=channel.name, delivered=True)
