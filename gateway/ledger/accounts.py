"""The ledger in double entry: every charge is owed by someone to someone.

A charge debits who had the work done, `team:T/key:K`, and credits who did it: `machine:M` for a
machine paid by the hour, else `upstream:BACKEND`. A reversal is the same with the sign turned. So
all accounts together are always zero.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.ledger.book import booked
from gateway.ledger.report_lines import sums_by
from gateway.ledger.report_query import ReportQuery

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Entry(Struct, frozen=True, kw_only=True):
    """One side of a charge."""

    at_us: int
    request_id: str
    seq: int
    kind: str
    account: str
    debit_nano_usd: int
    credit_nano_usd: int
    reverses_seq: int | None = None


class Balance(Struct, kw_only=True):
    """An account over a period."""

    account: str
    debit_nano_usd: int = 0
    credit_nano_usd: int = 0

    @property
    def balance_nano_usd(self) -> int:
        """Debits less credits."""
        return self.debit_nano_usd - self.credit_nano_usd


def payer(team: str | None, key: str | None) -> str:
    """The account that a request's charges debit."""
    return f"team:{team}/key:{key}"


def payee(machine: str | None, backend: str | None) -> str:
    """The account that a charge credits."""
    return f"upstream:{backend}" if machine is None else f"machine:{machine}"


async def balances(connection: "AsyncConnection", query: ReportQuery) -> list[Balance]:
    """All accounts of a period, by name, out of the roll-ups."""
    by_account: dict[str, Balance] = {}

    def post(account: str, debit: int, credit: int) -> None:
        line = by_account.setdefault(account, Balance(account=account))
        line.debit_nano_usd += debit
        line.credit_nano_usd += credit

    keys = ("team", "key", "machine", "backend")
    for (team, key, machine, backend), cost in await sums_by(connection, query, keys):
        if cost:
            debit, credit = max(cost, 0), max(-cost, 0)
            post(payer(team, key), debit, credit)
            post(payee(machine, backend), credit, debit)
    return sorted(by_account.values(), key=lambda line: line.account)


async def entries(
    connection: "AsyncConnection", *, since_us: int, until_us: int
) -> AsyncIterator[Entry]:
    """Both sides of every charge booked in a period, in the order of booking."""
    async for page in booked(connection, since_us=since_us, until_us=until_us):
        for row in page:
            cost: int = row["cost_nano_usd"]
            for account, amount in (
                (payer(row["team"], row["key"]), cost),
                (payee(row["machine"], row["backend"]), -cost),
            ):
                yield Entry(
                    at_us=row["at_us"],
                    request_id=row["request_id"],
                    seq=row["seq"],
                    kind=row["kind"],
                    account=account,
                    debit_nano_usd=max(amount, 0),
                    credit_nano_usd=max(-amount, 0),
                    reverses_seq=row["reverses_seq"],
                )
