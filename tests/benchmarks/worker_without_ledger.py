"""A gateway worker that books nothing: what `bench_limits` compares with."""

import sys

import gateway.assembly
from gateway import worker
from gateway.ledger.heeded import Heeded
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import Settlement


class NoLedger(Ledger):
    """Forgets what it is told."""

    def settle(self, settlement: Settlement, *, heeded: Heeded | None = None) -> None:
        """Nothing."""

    async def journalled(self, *, alone: bool = False) -> None:
        """At once."""


if __name__ == "__main__":
    gateway.assembly.Ledger = NoLedger  # type: ignore[attr-defined]
    sys.exit(worker.main())
