"""Charges of requests that were cut off before their backend could say what they used.

A client leaves, the gateway asks the engine what it had done, and the engine is too busy to answer
within the second that a settlement may wait. It keeps the answer for a minute, so it is asked again
in the background, and what it says is booked as a further charge: late, but not lost.
"""

import asyncio

import structlog

from backends.contract import Usage
from backends.errors import BackendError
from gateway.ledger.pricing import price_usage
from gateway.ledger.records import ChargeRecord, Settlement
from gateway.parts import Parts

log = structlog.get_logger(__name__)

_SEQ = 900
"""Above every charge that the request itself can have, below a shadow's."""
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 25.0)
"""Until an engine forgets."""
_TIMEOUT_S = 5.0


class LateCharges:
    """Asks again in the background."""

    def __init__(self, parts: Parts) -> None:
        self.unknown = 0
        """Requests whose usage nobody ever told."""
        self._parts = parts
        self._running: set[asyncio.Task[None]] = set()

    def follow(self, settlement: Settlement) -> None:
        """Find out later what a cut-off request used, where that is still unknown."""
        for charge in settlement.charges:
            settings = self._parts.backend_settings[charge.backend]
            if settings.kind == "engine" and charge.machine_ns == 0:
                task = asyncio.create_task(self._ask(settlement, charge))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def settled(self) -> None:
        """Wait for those on their way."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def aclose(self) -> None:
        """Give up those on their way."""
        for task in self._running:
            task.cancel()
        await self.settled()

    async def _ask(self, settlement: Settlement, unknown: ChargeRecord) -> None:
        for pause_s in _PAUSES_S:
            await asyncio.sleep(pause_s)
            usage = await self._usage_of(unknown)
            if usage is not None:
                if usage.headgate is not None and usage.headgate.billable_ns:
                    self._book(settlement, unknown, usage)
                return
        self.unknown += 1
        log.warning("usage_lost", request_id=unknown.request_id, backend=unknown.backend)

    async def _usage_of(self, charge: ChargeRecord) -> Usage | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._parts.backends[charge.backend].usage_of(charge.request_id)
        except (BackendError, TimeoutError):
            return None

    def _book(self, settlement: Settlement, unknown: ChargeRecord, usage: Usage) -> None:
        """Its time; its tokens were counted when it was cut off."""
        parts = self._parts
        charge = price_usage(
            parts.settings,
            parts.backend_settings[unknown.backend],
            Usage(headgate=usage.headgate),
            elapsed_s=0.0,
            in_flight=1,
            kind=unknown.kind,
            at=parts.clock(),
            request_id=unknown.request_id,
            seq=_SEQ + unknown.seq,
        )
        charges = (*settlement.charges, charge)  # what is there already stays as it is
        parts.ledger.settle(Settlement(request=settlement.request, charges=charges))
        parts.metrics.count_charge(charge, parts.backend_settings[unknown.backend].model)
