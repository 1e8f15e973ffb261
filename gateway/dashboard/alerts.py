"""`/alerts`: what is wrong now, what was, who was told, and whether telling works."""

from typing import Any

from gateway.alerts.show import shown, shown_channel
from gateway.alerts.store import list_alerts, undelivered
from gateway.api.acts import reading
from gateway.dashboard.charts import Cell, Chart
from gateway.dashboard.visitor import Visit

SHOWN = 100
_COLUMNS = ("opened_at", "resolved_at", "severity", "kind", "title", "text")


async def alerts(visit: Visit) -> dict[str, Any]:
    """The newest alerts, the outbox and the channels."""
    async with reading(visit.pipeline) as connection:
        firing = await list_alerts(connection, open_only=True, limit=SHOWN)
        newest = await list_alerts(connection, limit=SHOWN)
        waiting = await undelivered(connection)
    earlier = [alert for alert in newest if alert.resolved_at is not None]
    cells: list[tuple[Cell, ...]] = [
        tuple(shown(alert)[name] for name in _COLUMNS) for alert in newest
    ]
    return {
        "firing": [shown(alert) for alert in firing],
        "earlier": [shown(alert) for alert in earlier],
        "waiting": waiting,
        "channels": [shown_channel(one) for one in visit.parts.settings.alerts.channels],
        "every_s": visit.parts.settings.alerts.every_s,
        "may_test": visit.caller.can("operations:write"),
        "tested": [],
        "charts": {
            "alerts": Chart(
                name="alerts", title="Alerts", kind="bars", columns=_COLUMNS, rows=cells
            )
        },
    }
