"""Which budgets a request was held against, so that those made meanwhile count it, too.

A new budget begins with what the ledger has of its window. What other processes answered in the
last two seconds is not there yet, and they hear of the budget up to a second later: such a request
stands in no slice. So each row comes with the budgets that its process knew, and the batch that
writes it looks which others there are. Budgets are made while no batch is written, so every row is
seen by the one or by the other, never by both. Rows of a process that died count where it has no
lease: who ends a lease counts all that its owner answered.
"""

from collections.abc import Iterable

from msgspec import Struct

from gateway.ledger.budget_store import BudgetId

_MARGIN_US = 3_600_000_000
"""Commands without a gateway make budgets by their host's clock."""


class Heeded(Struct, frozen=True):
    """The budgets that a process knew."""

    ids: frozenset[BudgetId]
    as_of_us: int
    """When it read them; what was made long before is among them."""


def heard_of_none(started_at: float) -> Heeded:
    """What a request may have been held against whose process died: any budget may be too young.

    Args:
        started_at: unix seconds.
    """
    return Heeded(frozenset(), round(started_at * 1e6))


def made_since_us(rows: Iterable[Heeded | None]) -> int | None:
    """From when on budgets are worth a look; None: no row says what it was held against."""
    return min((row.as_of_us - _MARGIN_US for row in rows if row is not None), default=None)
