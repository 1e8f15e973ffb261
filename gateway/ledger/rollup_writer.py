"""Sums into the roll-ups and their details, inside the transaction that writes the rows."""

from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from gateway.ledger.database import inserting_once, upsert_adding
from gateway.ledger.rollups import SUMS, Totals, by_span, details_by_span, dimension_id
from gateway.ledger.tables import rollup_details, rollup_keys, rollup_values, rollups

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from gateway.ledger.direct import Direct

_MOST_KEYS = 100_000


class RollupWriter:
    """Adds up. Keys stay for ever, so those that were written are remembered; users and tags go
    with their last details (`sweep`), so each batch says its own again."""

    def __init__(self, engine: "AsyncEngine") -> None:
        self._insert_key = inserting_once(engine, rollup_keys, rollup_keys.c.keys())
        self._insert_value = inserting_once(engine, rollup_values, rollup_values.c.keys())
        self._add = upsert_adding(engine, rollups, SUMS)
        self._add_detail = upsert_adding(engine, rollup_details, SUMS)
        self._keys: set[int] = set()
        """Ids of those that are in the database for certain."""

    async def write(self, driver: "Direct", totals: Totals) -> set[int]:
        """Add all to what is there.

        Returns:
            The new keys' ids, which the database has once that is committed.
        """
        spans = by_span(totals.quarters)
        details = details_by_span(totals)
        used = {number for *_, number in spans} | {number for *_, number in details}
        new = used - self._keys
        if new:
            await driver.many(self._insert_key, [(n, *totals.keys[n]) for n in sorted(new)])
        if spans:
            await driver.many(self._add, sorted((*at, *sums) for at, sums in spans.items()))
        if details:
            values = totals.values
            said = sorted({number for _, _, number, _ in details})
            await driver.many(self._insert_value, [(n, *values[n]) for n in said])
            rows = sorted(
                (span_s, at_us, dimension_id(values[value][0]), value, key, *sums)
                for (span_s, at_us, value, key), sums in details.items()
            )
            await driver.many(self._add_detail, rows)
        return new

    def committed(self, keys: set[int]) -> None:
        """Remember keys that are in the database now."""
        if len(self._keys) > _MOST_KEYS:
            self._keys.clear()
        self._keys |= keys


async def sweep(connection: "AsyncConnection") -> None:
    """Remove details of nothing (and of less, where their month was cut before), and the users and
    tags that have none; writers are held (see
    `state.hold_writers`), as each of theirs is about to have one."""
    await connection.execute(delete(rollup_details).where(rollup_details.c.requests <= 0))
    left = select(rollup_values.c.id).except_(select(rollup_details.c.value_id))
    await connection.execute(delete(rollup_values).where(rollup_values.c.id.in_(left)))
