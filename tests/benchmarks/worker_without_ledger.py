"""A gateway worker that books nothing: what `bench_limits` compares with."""

import sys

import gateway.processes.assembly
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import Settlement
from gateway.processes import worker


class NoLedger(Ledger):
    """Forgets what it is told."""

    def settle(self, settlement: Settlement) -> None:
        """Nothing."""

    async def journalled(self, *, alone: bool = False) -> None:
        """At once."""


if __name__ == "__main__":
    gateway.processes.assembly.Ledger = NoLedger  # type: ignore[attr-defined]
    sys.exit(worker.main())
