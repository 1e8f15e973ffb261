"""Hourly spending and requests out of the roll-ups, by team, model, key or machine."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct
from sqlalchemy import func, select

from gateway.insights.season import WEEK_H, Hours
from gateway.ledger import subjects
from gateway.ledger.rollups import HOUR_S, QUARTER_S
from gateway.ledger.subjects import SUBJECT_KINDS
from gateway.ledger.tables import rollup_keys, rollups

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

By = Literal["all", "team", "key", "model", "rule", "task", "backend", "machine"]
HOUR_US = HOUR_S * 1_000_000
_MONDAY_H = 4 * 24
"""1970-01-01 was a Thursday: this many hours later a week began."""
_FIGURES = ("cost_nano_usd", "requests", "tokens")


class Series(Struct, frozen=True, kw_only=True):
    """One name's charges by the hour; all arrays float64 [n], the oldest hour first."""

    name: str
    cost: Hours
    """Nano-dollars, marginal."""
    requests: Hours
    tokens: Hours

    def last(self, count: int) -> "Series":
        """Only the last hours."""
        return Series(
            name=self.name,
            cost=self.cost[-count:],
            requests=self.requests[-count:],
            tokens=self.tokens[-count:],
        )


def hour_of_week(at_us: int) -> int:
    """Hours since a Monday's midnight UTC, below 168."""
    return int(at_us // HOUR_US - _MONDAY_H) % WEEK_H


def full_hour_us(now: datetime) -> int:
    """Begin of the hour that is not over yet."""
    at_us = int(now.timestamp() * 1e6)
    return at_us - at_us % HOUR_US


async def read_series(
    connection: "AsyncConnection",
    by: By,
    *,
    since_us: int,
    until_us: int,
    where: dict[str, str] | None = None,
) -> list[Series]:
    """Charges of full hours in [since, until), the dearest name first.

    Args:
        since_us, until_us: unix microseconds at full hours.
        where: only these, by name of a roll-up's column; teams by id.
    """
    keys, sums = rollup_keys.c, rollups.c
    name: ColumnElement[Any] = func.coalesce(keys[by], "") if by != "all" else _nobody()
    statement = (
        select(
            name.label("name"),
            sums.bucket_us,
            func.sum(sums.cost_nano_usd),
            func.sum(sums.requests),
            func.sum(sums.prompt_tokens + sums.completion_tokens),
        )
        .join_from(rollups, rollup_keys, keys.id == sums.key_id)
        .where(keys.fact == "charge", sums.span_s == HOUR_S)
        .where(sums.bucket_us >= since_us, sums.bucket_us < until_us)
        .where(*(keys[column] == value for column, value in (where or {}).items()))
        .group_by("name", sums.bucket_us)
    )
    count = max((until_us - since_us) // HOUR_US, 0)
    found: dict[str, Any] = {}
    for row in await connection.execute(statement):
        table = found.setdefault(row[0], np.zeros((len(_FIGURES), count)))
        table[:, (row[1] - since_us) // HOUR_US] = [float(value or 0) for value in row[2:]]
    names = await subjects.names_of(connection, found) if by in SUBJECT_KINDS else {}
    series = [
        Series(
            name=str(subjects.shown(key, names)) if by in SUBJECT_KINDS else key,
            cost=table[0],
            requests=table[1],
            tokens=table[2],
        )
        for key, table in found.items()
    ]
    return sorted(series, key=lambda one: (-float(one.cost.sum()), one.name))


async def first_hour_us(connection: "AsyncConnection") -> int | None:
    """Begin of the oldest hour in the roll-ups."""
    oldest = select(func.min(rollups.c.bucket_us)).where(rollups.c.span_s == HOUR_S)
    found = (await connection.execute(oldest)).scalar()
    return None if found is None else int(found)


async def current_hour_cost(connection: "AsyncConnection", since_us: int) -> float:
    """Charges since a full hour, nano-dollars: of the hour that is under way."""
    statement = (
        select(func.sum(rollups.c.cost_nano_usd))
        .join_from(rollups, rollup_keys, rollup_keys.c.id == rollups.c.key_id)
        .where(rollup_keys.c.fact == "charge", rollups.c.span_s == QUARTER_S)
        .where(rollups.c.bucket_us >= since_us)
    )
    return float((await connection.execute(statement)).scalar() or 0)


def _nobody() -> "ColumnElement[Any]":
    from sqlalchemy import literal

    return literal("")
