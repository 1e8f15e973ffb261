"""Alerts and what is still to be delivered (the outbox), in SQL.

An alert and its deliveries are written in one transaction: what is open was told, or will be. A
key can be open once, whatever the number of processes that look. A delivery is claimed for a while
before it is tried; whoever dies in between leaves it to the next, so it goes out at least once.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import and_, delete, insert, select, update

from gateway.alerts.model import Alert, Event, Finding, moment
from gateway.alerts.quiet import due_at
from gateway.alerts.settings import ChannelSettings
from gateway.ledger.database import insert_once
from gateway.ledger.tables import alert_deliveries as deliveries
from gateway.ledger.tables import alerts

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

CLAIM_S = 60.0
"""How long a delivery belongs to who claimed it."""
GIVE_UP_S = 86_400.0
"""A channel that takes nothing for a day is not asked about this message again …"""
GIVE_UP_REPORT_S = 7 * GIVE_UP_S
"""… and about a month's report after a week."""
REPORT = "monthly"
"""Kind of what is no alert, but takes the same way out."""
_NEVER_US = 2**62
"""Due then: given up."""
_BACKOFF_S = (5.0, 15.0, 60.0, 300.0, 900.0)


class Delivery(Struct, frozen=True, kw_only=True):
    """One message to one channel, as it stands."""

    alert: Alert
    event: Event
    channel: str
    attempts: int
    """Made so far, this one included."""
    created_at: float

    @property
    def id(self) -> str:
        """The same for every attempt."""
        return f"{self.alert.id}-{self.event}-{self.channel}"


async def open_alert(
    connection: "AsyncConnection",
    finding: Finding,
    channels: Iterable[ChannelSettings],
    *,
    now: float,
    alert_id: str | None = None,
) -> bool:
    """Note that a finding holds; whether it is new. New ones go to the channels."""
    alert_id = alert_id or uuid.uuid4().hex
    made = await connection.execute(
        insert_once(connection.dialect.name, alerts).values(
            id=alert_id,
            key=finding.key,
            open_key=finding.key,
            kind=finding.kind,
            severity=finding.severity,
            title=finding.title,
            text=finding.text,
            facts=dict(finding.facts),
            opened_us=_us(now),
            seen_us=_us(now),
        )
    )
    if made.rowcount != 1:
        still = update(alerts).where(alerts.c.open_key == finding.key).values(seen_us=_us(now))
        await connection.execute(still)
        return False
    await _tell(connection, alert_id, "opened", finding.kind, finding.severity, channels, now)
    return True


async def resolve_alerts(
    connection: "AsyncConnection",
    kinds: Collection[str],
    found: Collection[str],
    channels: Sequence[ChannelSettings],
    *,
    now: float,
    unseen_s: float,
) -> list[Alert]:
    """Close what was looked for and not found for `unseen_s`; returns it."""
    statement = select(alerts).where(
        alerts.c.open_key.is_not(None),
        alerts.c.kind.in_(kinds),
        alerts.c.seen_us <= _us(now - unseen_s),
    )
    closed = []
    for row in (await connection.execute(statement)).all():
        if row.key in found:
            continue
        done = await connection.execute(
            update(alerts)
            .where(alerts.c.id == row.id, alerts.c.open_key.is_not(None))
            .values(open_key=None, resolved_us=_us(now))
        )
        if done.rowcount == 1:
            await _spare_morning(connection, row.id, now)
            await _tell(connection, row.id, "resolved", row.kind, row.severity, channels, now)
            closed.append(_alert(row))
    return closed


async def _spare_morning(connection: "AsyncConnection", alert_id: str, now: float) -> None:
    """What is over before quiet hours were is told in one message: that it was, and when."""
    d = deliveries.c
    held = and_(d.alert_id == alert_id, d.event == "opened", d.attempts == 0, d.due_us > _us(now))
    await connection.execute(delete(deliveries).where(held))


async def queue_report(
    connection: "AsyncConnection",
    month: str,
    scope: str,
    channel: ChannelSettings,
    *,
    now: float,
) -> bool:
    """Have a month's report sent to a channel; whether it was not yet. Its id says what it is, so
    however many processes ask for it, now or after a restart, it is there once."""
    report_id = hashlib.sha256(f"{month} {scope}".encode()).hexdigest()[:32]
    dialect = connection.dialect.name
    await connection.execute(
        insert_once(dialect, alerts).values(
            id=report_id,
            key=f"monthly:{month}:{scope}",
            kind=REPORT,
            severity="info",
            title=f"Costs of {scope} in {month}",
            facts={"month": month, "scope": scope},
            opened_us=_us(now),
            seen_us=_us(now),
            resolved_us=_us(now),
        )
    )
    row = _delivery(report_id, "report", channel, now, due_at(channel.quiet, "info", now))
    made = await connection.execute(insert_once(dialect, deliveries).values(row))
    return made.rowcount == 1


async def claim(connection: "AsyncConnection", *, now: float, limit: int = 20) -> list[Delivery]:
    """Due deliveries that are now the caller's for CLAIM_S."""
    d = deliveries.c
    due = (
        select(deliveries, *(alerts.c[c.name].label(f"of_{c.name}") for c in alerts.c))
        .join_from(deliveries, alerts, alerts.c.id == d.alert_id)
        .where(d.delivered_us.is_(None), d.due_us <= _us(now))
        .order_by(d.due_us)
        .limit(limit)
    )
    mine = []
    for row in (await connection.execute(due)).all():
        claimed = await connection.execute(
            update(deliveries)
            .where(_this(row), d.delivered_us.is_(None), d.due_us == row.due_us)
            .values(due_us=_us(now + CLAIM_S), attempts=row.attempts + 1)
        )
        if claimed.rowcount == 1:
            mine.append(
                Delivery(
                    alert=_alert(row, "of_"),
                    event=row.event,
                    channel=row.channel,
                    attempts=row.attempts + 1,
                    created_at=row.created_us / 1e6,
                )
            )
    return mine


async def delivered(connection: "AsyncConnection", delivery: Delivery, *, now: float) -> None:
    """It arrived."""
    await connection.execute(
        update(deliveries).where(_that(delivery)).values(delivered_us=_us(now), error="")
    )


async def failed(
    connection: "AsyncConnection", delivery: Delivery, error: str, *, now: float
) -> bool:
    """It did not arrive; whether it is tried again."""
    patience_s = GIVE_UP_REPORT_S if delivery.event == "report" else GIVE_UP_S
    given_up = now - delivery.created_at > patience_s
    pause_s = _BACKOFF_S[min(delivery.attempts, len(_BACKOFF_S)) - 1]
    due_us = _NEVER_US if given_up else _us(now + pause_s)
    await connection.execute(
        update(deliveries).where(_that(delivery)).values(due_us=due_us, error=error[:500])
    )
    return not given_up


async def list_alerts(
    connection: "AsyncConnection", *, open_only: bool = False, limit: int = 100
) -> list[Alert]:
    """The newest first."""
    statement = select(alerts).where(alerts.c.kind != REPORT)
    if open_only:
        statement = statement.where(alerts.c.open_key.is_not(None))
    newest = statement.order_by(alerts.c.opened_us.desc()).limit(limit)
    return [_alert(row) for row in await connection.execute(newest)]


async def undelivered(connection: "AsyncConnection") -> list[dict[str, Any]]:
    """What waits, or was given up, with the last error."""
    d = deliveries.c
    waiting = (
        select(deliveries, alerts.c.title)
        .join_from(deliveries, alerts, alerts.c.id == d.alert_id)
        .where(d.delivered_us.is_(None))
        .order_by(d.created_us)
        .limit(100)
    )
    return [
        {
            "alert": row.alert_id,
            "title": row.title,
            "event": row.event,
            "channel": row.channel,
            "attempts": row.attempts,
            "given_up": row.due_us == _NEVER_US,
            "due_at": None if row.due_us == _NEVER_US else moment(row.due_us / 1e6),
            "error": row.error,
        }
        for row in await connection.execute(waiting)
    ]


async def _tell(
    connection: "AsyncConnection",
    alert_id: str,
    event: Event,
    kind: str,
    severity: str,
    channels: Iterable[ChannelSettings],
    now: float,
) -> None:
    rows = [
        _delivery(alert_id, event, channel, now, due_at(channel.quiet, severity, now))
        for channel in channels
        if channel.kinds is None or kind in channel.kinds
    ]
    if rows:
        await connection.execute(insert(deliveries), rows)


def _delivery(
    alert_id: str, event: Event, channel: ChannelSettings, now: float, due: float
) -> dict[str, Any]:
    return {
        "alert_id": alert_id,
        "event": event,
        "channel": channel.name,
        "created_us": _us(now),
        "due_us": _us(due),
        "attempts": 0,
    }


def _this(row: Any) -> Any:
    d = deliveries.c
    return and_(d.alert_id == row.alert_id, d.event == row.event, d.channel == row.channel)


def _that(delivery: Delivery) -> Any:
    d = deliveries.c
    return and_(
        d.alert_id == delivery.alert.id,
        d.event == delivery.event,
        d.channel == delivery.channel,
    )


def _alert(row: Any, prefix: str = "") -> Alert:
    def get(name: str) -> Any:
        return getattr(row, prefix + name)

    return Alert(
        id=get("id"),
        key=get("key"),
        kind=get("kind"),
        severity=get("severity"),
        title=get("title"),
        text=get("text"),
        facts=get("facts"),
        opened_at=get("opened_us") / 1e6,
        seen_at=get("seen_us") / 1e6,
        resolved_at=None if get("resolved_us") is None else get("resolved_us") / 1e6,
    )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
