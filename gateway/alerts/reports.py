"""Monthly reports: each goes once to each channel that asks for it, by the outbox of the alerts."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from gateway.alerts import store
from gateway.alerts.model import Message
from gateway.insights.monthly import EVERYBODY, MonthlyReport, monthly_report, reported_scopes
from gateway.ledger.database import writing
from gateway.settings import Settings
from gateway.settings.reports import MonthlySettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def month_due(monthly: MonthlySettings, now: float) -> str | None:
    """The month before, YYYY-MM, once its report is due; None: this month's moment is to come."""
    local = datetime.fromtimestamp(now, ZoneInfo(monthly.tz))
    if (local.day, local.strftime("%H:%M")) < (monthly.day, monthly.at):
        return None
    return (local.replace(day=1) - timedelta(days=1)).strftime("%Y-%m")


async def queue_month(engine: "AsyncEngine", settings: Settings, month: str, now: float) -> int:
    """Put the month's reports into the outbox that are not there yet; how many.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    asking = [channel for channel in settings.alerts.channels if channel.monthly]
    tz, count = settings.reports.monthly.tz, 0
    for channel in asking:
        scopes = await reported_scopes(engine, channel.monthly, month=month, tz=tz)
        async with writing(engine) as connection:
            for scope in scopes:
                count += await store.queue_report(connection, month, scope, channel, now=now)
    return count


async def report_message(
    engine: "AsyncEngine", settings: Settings, delivery: store.Delivery
) -> Message:
    """A delivery's report, made of the ledger as it is now."""
    facts = delivery.alert.facts
    report = await report_of(engine, settings, str(facts["month"]), str(facts["scope"]))
    return message_of(report, delivery.id, attempt=delivery.attempts)


async def report_of(
    engine: "AsyncEngine", settings: Settings, month: str, scope: str
) -> MonthlyReport:
    """Of everybody or of a team."""
    team = None if scope == EVERYBODY else scope.removeprefix("team:")
    tz = settings.reports.monthly.tz
    return await monthly_report(engine, settings, month=month, team=team, tz=tz)


def message_of(report: MonthlyReport, message_id: str, *, attempt: int = 1) -> Message:
    """As channels take it."""
    return Message(
        id=message_id,
        event="report",
        kind=store.REPORT,
        severity="info",
        title=report.title,
        text=report.text,
        facts=report.facts,
        attempt=attempt,
        html=report.html,
    )
