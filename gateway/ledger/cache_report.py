"""`report cache`: what each layer spared, by any of the reports' keys, and what that took."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway.ledger.reports import costs_report
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

COUNTS = (
    "requests",
    "cache_hits_exact",
    "cache_hits_semantic",
    "prompt_tokens",
    "cached_prompt_tokens",
)


async def cache_report(
    engine: "AsyncEngine",
    settings: Settings,
    *,
    group_by: str | Sequence[str] = ("team",),
    since: str | None = None,
    until: str | None = None,
    tz: str = "UTC",
) -> dict[str, Any]:
    """Rows of counts and rates; amounts are decimal strings, rates shares from 0 to 1.

    The answer caches' rates are shares of requests, the prefix cache's is one of prompt tokens.

    Raises:
        ReportError: a question that cannot be answered.
        SQLAlchemyError: the database does not answer.
    """
    found = await costs_report(engine, settings, group_by=group_by, since=since, until=until, tz=tz)
    saved = found["savings"]
    return {
        **{name: found[name] for name in ("since", "until", "tz", "group_by")},
        "rows": [
            {**{key: row[key] for key in found["group_by"]}, **_rates(row)} for row in found["rows"]
        ],
        "totals": _rates(found["totals"]),
        **{name: saved[name] for name in ("avoided_usd", "spent_on_saving_usd", "net_avoided_usd")},
    }


def _rates(row: dict[str, Any]) -> dict[str, Any]:
    count, tokens = row["requests"], row["prompt_tokens"]
    return {
        **{name: row[name] for name in COUNTS},
        "exact_rate": row["cache_hits_exact"] / count if count else None,
        "semantic_rate": row["cache_hits_semantic"] / count if count else None,
        "prefix_rate": row["cached_prompt_tokens"] / tokens if tokens else None,
        "saved_usd": row["saved_usd"],
    }
