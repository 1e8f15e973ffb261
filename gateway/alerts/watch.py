"""The task that looks, tells and delivers: one gateway process per state folder does it.

A file lock decides who; when that process dies the next one goes on. Several hosts on one database
may look at once: the outbox sees to it that each finding is told once. With the database away that
is itself the news: it goes out without it, noted in a small file, so that a restart neither forgets
it nor tells it anew, and takes its place among the alerts when the database is back.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import structlog
from msgspec import Struct, field
from sqlalchemy.exc import SQLAlchemyError

from gateway.alerts import store
from gateway.alerts.deliver import NotDelivered, deliver
from gateway.alerts.model import Finding, Message
from gateway.alerts.settings import AlertSettings, ChannelSettings, Kind
from gateway.insights.series import full_hour_us
from gateway.ledger.database import writing
from gateway.processes.aside import Aside, AsideError, ask_aside
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.alerts.checks import Check

log = structlog.get_logger(__name__)

AWAY = (SQLAlchemyError, OSError, TimeoutError)
PATIENCE_LOOKS = 2
"""An outage is told at the second look that finds it: a restart is none."""
_LATE_S = 600.0
_PATIENCE_S = 5.0
"""That a look has with the checks of the hour."""
_CLEAR_LOOKS = 3
"""And what is not found any more is resolved after as many."""


class Outage(Struct, kw_only=True):
    """The database's absence as it stands in the file."""

    id: str
    opened_at: float
    error: str
    attempts: dict[str, int] = field(default_factory=dict)
    """By channel, made so far."""
    delivered: list[str] = field(default_factory=list)


class AlertWatch:
    """One per gateway process; those without the lock only wait for it.

    Args:
        cache_answers: whether the caches' store does; None: there are no caches.
        folder: of the lock and the outage's file.
        clock: unix seconds.
        aside: who checks what takes long, once an hour.
    """

    def __init__(
        self,
        settings: Settings,
        engine: "AsyncEngine",
        *,
        cache_answers: Callable[[], Awaitable[bool]] | None,
        folder: Path,
        clock: Callable[[], float],
        aside: Aside = ask_aside,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._cache_answers = cache_answers
        self._folder = folder
        self._clock = clock
        self._cache_away = self._database_away = 0
        """Looks in a row."""
        self._aside = aside
        self._asking: asyncio.Task[dict[Kind, list[Finding]]] | None = None
        self._hour_us = self._asked_us = 0
        self._reported_month = ""
        self._of_the_hour: dict[Kind, list[Finding]] = {}
        self._often: dict[Kind, Check] = {}
        self._lock: int | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def _alerts(self) -> AlertSettings:
        return self._settings.alerts

    async def start(self) -> None:
        """Look from now on, if no other process does."""
        self._task = asyncio.create_task(self._run(), name="alerts")

    async def aclose(self) -> None:
        """Look no more; what is not delivered yet waits in the outbox."""
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._alerts.every_s)
            if self._lock is None:
                self._lock = _try_lock(self._folder / "alerts.lock")
            if self._lock is None:
                continue
            try:
                await self.look()
            except Exception as error:  # a bug in one check must not end all watching
                log.exception("alerts_look_failed", error=repr(error))

    async def look(self) -> None:
        """Check everything once, tell what is new or over, deliver what is due."""
        async with httpx.AsyncClient() as client:
            try:
                await self._tell()
                await self._queue_reports()
                await self._deliver(client)
                self._database_away = 0
            except AWAY as error:
                self._database_away += 1
                if self._database_away >= PATIENCE_LOOKS:
                    await self._tell_without_database(client, str(error)[:300])

    async def _tell(self) -> None:
        """Raises one of AWAY."""
        from gateway.alerts.checks import often  # at the first look: not before it is ready

        now, self._often = self._clock(), self._often or often()
        findings = {kind: await self._check(check, now) for kind, check in self._often.items()}
        findings |= await self._hourly(now)
        findings["cache_outage"] = await self._cache_outage()
        findings["ledger_outage"] = []
        told = [finding for of_kind in findings.values() for finding in of_kind]
        before = _read_outage(self._outage_file)
        async with writing(self._engine) as connection:
            if before is not None:
                await _take_over(connection, before, self._alerts.channels)
            for finding in told:
                if await store.open_alert(connection, finding, self._alerts.channels, now=now):
                    log.warning("alert_opened", kind=finding.kind, severity=finding.severity)
            closed = await store.resolve_alerts(
                connection,
                list(findings),
                {finding.key for finding in told},
                self._alerts.channels,
                now=now,
                unseen_s=(_CLEAR_LOOKS - 1) * self._alerts.every_s,
            )
        self._outage_file.unlink(missing_ok=True)
        for alert in closed:
            log.info("alert_resolved", kind=alert.kind, alert=alert.id)

    async def _hourly(self, now: float) -> dict[Kind, list[Finding]]:
        """Anew once an hour is over and its late charges are there; until then as they were.

        A look waits a little for them; what takes longer is told by a later one.
        """
        hour_us = full_hour_us(datetime.fromtimestamp(now - _LATE_S, UTC))
        if hour_us != self._hour_us and self._asking is None:
            self._asking = asyncio.create_task(self._ask_aside(now), name="alerts of the hour")
            self._asked_us = hour_us
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=_PATIENCE_S)
            if self._asking.done():
                done, self._asking = self._asking, None
                try:
                    self._of_the_hour, self._hour_us = done.result(), self._asked_us
                except AsideError as error:
                    log.warning("alerts_hour_not_checked", error=str(error))
        return self._of_the_hour

    async def _ask_aside(self, now: float) -> dict[Kind, list[Finding]]:
        found = await self._aside(self._engine, self._settings, "hourly_findings", now=now)
        return msgspec.convert(found, dict[Kind, list[Finding]])

    async def _check(self, check: "Check", now: float) -> list[Finding]:
        return await check(self._engine, self._settings, datetime.fromtimestamp(now, UTC))

    async def _cache_outage(self) -> list[Finding]:
        answers = self._cache_answers is None or await self._cache_answers()
        self._cache_away = 0 if answers else self._cache_away + 1
        if self._cache_away < PATIENCE_LOOKS:
            return []
        return [
            Finding(
                key=f"cache_outage:{socket.gethostname()}",
                kind="cache_outage",
                title="The caches' Redis does not answer",
                text="Requests pass uncached; shared limits and breakers count per process.",
            )
        ]

    async def _queue_reports(self) -> None:
        """Once a month, if a channel asks for it. Raises one of AWAY."""
        if not any(channel.monthly for channel in self._alerts.channels):
            return
        from gateway.alerts.reports import month_due, queue_month

        now = self._clock()
        month = month_due(self._settings.reports.monthly, now)
        if month is None or month == self._reported_month:
            return
        count = await queue_month(self._engine, self._settings, month, now)
        self._reported_month = month
        if count:
            log.info("monthly_reports_queued", month=month, count=count)

    # Delivery

    async def _deliver(self, client: httpx.AsyncClient) -> None:
        """Try all that is due. Raises one of AWAY."""
        async with writing(self._engine) as connection:
            due = await store.claim(connection, now=self._clock())
        await asyncio.gather(*(self._deliver_one(client, delivery) for delivery in due))

    async def _deliver_one(self, client: httpx.AsyncClient, delivery: store.Delivery) -> None:
        channel = self._channel(delivery.channel)
        error = "the configuration knows no such channel any more"
        if channel is not None:
            try:
                message = await self._message(delivery)
                await deliver(message, channel, client, now=self._clock())
                error = ""
            except NotDelivered as problem:
                error = str(problem)
        async with writing(self._engine) as connection:
            if not error:
                await store.delivered(connection, delivery, now=self._clock())
                return
            again = await store.failed(connection, delivery, error, now=self._clock())
        log.warning("alert_not_delivered", channel=delivery.channel, error=error, again=again)

    async def _message(self, delivery: store.Delivery) -> Message:
        if delivery.event != "report":
            return _message(delivery)
        from gateway.alerts.reports import report_message

        return await report_message(self._engine, self._settings, delivery)

    def _channel(self, name: str) -> ChannelSettings | None:
        return next((c for c in self._alerts.channels if c.name == name), None)

    # Without the database

    @property
    def _outage_file(self) -> Path:
        return self._folder / "alerts.outage.json"

    async def _tell_without_database(self, client: httpx.AsyncClient, error: str) -> None:
        outage = _read_outage(self._outage_file) or Outage(
            id=uuid.uuid4().hex, opened_at=self._clock(), error=error
        )
        finding = _ledger_outage(outage)
        for channel in self._alerts.channels:
            wanted = channel.kinds is None or finding.kind in channel.kinds
            if not wanted or channel.name in outage.delivered:
                continue
            outage.attempts[channel.name] = outage.attempts.get(channel.name, 0) + 1
            _write_outage(self._outage_file, outage)  # before: who dies now may have told
            message = _of_finding(finding, outage, channel.name)
            try:
                await deliver(message, channel, client, now=self._clock())
            except NotDelivered as problem:
                log.warning("alert_not_delivered", channel=channel.name, error=str(problem))
                continue
            outage.delivered.append(channel.name)
        _write_outage(self._outage_file, outage)


async def _take_over(connection: Any, outage: Outage, channels: Sequence[ChannelSettings]) -> None:
    """The database is back: its absence becomes an alert, which the next looks resolve."""
    rest = [channel for channel in channels if channel.name not in outage.delivered]
    finding = _ledger_outage(outage)
    await store.open_alert(connection, finding, rest, now=outage.opened_at, alert_id=outage.id)


def _ledger_outage(outage: Outage) -> Finding:
    return Finding(
        key=f"ledger_outage:{socket.gethostname()}",
        kind="ledger_outage",
        severity="critical",
        title="The ledger's database does not answer",
        text=f"{outage.error.rstrip('.')}. Rows wait in the journal; `headgate doctor` says more.",
    )


def _message(delivery: store.Delivery) -> Message:
    alert = delivery.alert
    return Message(
        id=delivery.id,
        event=delivery.event,
        kind=alert.kind,
        severity=alert.severity,
        title=alert.title,
        text=alert.text,
        facts=alert.facts,
        opened_at=alert.opened_at,
        resolved_at=alert.resolved_at,
        attempt=delivery.attempts,
    )


def _of_finding(finding: Finding, outage: Outage, channel: str) -> Message:
    return Message(
        id=f"{outage.id}-opened-{channel}",
        event="opened",
        kind=finding.kind,
        severity=finding.severity,
        title=finding.title,
        text=finding.text,
        opened_at=outage.opened_at,
        attempt=outage.attempts[channel],
    )


def _read_outage(file: Path) -> Outage | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Outage)
    except (OSError, msgspec.DecodeError):
        return None


def _write_outage(file: Path, outage: Outage) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(outage))
    new.replace(file)


def _try_lock(file: Path) -> int | None:
    """A descriptor that holds the lock; None: another process has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
