"""Charges of what nobody could say yet when a request was settled.

A question was still in the encoder when its answer was done: its charge follows when it comes out.
A client leaves, the gateway asks the engine what it had done, and the engine is too busy to answer
within the second that a settlement may wait. It keeps the answer for a minute, so it is asked again
in the background, and what it says is booked as a further charge: late, but not lost.
"""

import asyncio
from collections.abc import Mapping

import structlog

from backends.contract import Usage
from backends.errors import BackendError
from gateway.background import Background
from gateway.cache.semantic import Encoding
from gateway.ledger.keys import Caller
from gateway.ledger.late_spending import by_backend
from gateway.ledger.pricing import price_usage
from gateway.ledger.records import ChargeKind, ChargeRecord, Settlement
from gateway.parts import Parts

log = structlog.get_logger(__name__)

_SEQ = 900
"""Above every charge that the request itself can have, below a shadow's."""
_ENCODER_SEQ = 800
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 25.0)
"""Until an engine forgets."""
_TIMEOUT_S = 5.0


class LateCharges:
    """Asks again, and waits, in the background."""

    def __init__(self, parts: Parts) -> None:
        self.unknown = 0
        """Requests whose usage nobody ever told."""
        self._parts = parts
        self._running = Background()

    def follow(self, settlement: Settlement, asked_as: Mapping[int, str]) -> None:
        """Find out later what cut-off calls used, where that is still unknown.

        Args:
            asked_as: by number of charge, the call's id at its backend; else the request's.
        """
        for charge in settlement.charges:
            settings = self._parts.backend_settings[charge.backend]
            if settings.kind == "engine" and charge.machine_ns == 0:
                request_id = asked_as.get(charge.seq, charge.request_id)
                self._running.start(self._ask(settlement, charge, request_id))

    def follow_encoding(self, encoding: Encoding, settlement: Settlement) -> None:
        """Book what the encoder takes for a question, once it is done with it."""
        assert self._parts.encoder is not None
        if all(charge.kind != "encoder" for charge in settlement.charges):
            self._running.start(self._wait(encoding, self._parts.encoder.name, settlement))

    async def settled(self) -> None:
        """Wait for those on their way."""
        await self._running.settled()

    async def aclose(self) -> None:
        """Give up those on their way."""
        await self._running.aclose()

    async def _wait(self, encoding: Encoding, encoder: str, settlement: Settlement) -> None:
        await asyncio.wait({encoding})
        if encoding.cancelled() or encoding.exception() is not None:
            return  # the encoder counts it as lost
        usage = encoding.result().usage
        if usage is not None:
            await self._book(settlement, encoder, usage, kind="encoder", seq=_ENCODER_SEQ)

    async def _ask(self, settlement: Settlement, unknown: ChargeRecord, request_id: str) -> None:
        for pause_s in _PAUSES_S:
            await asyncio.sleep(pause_s)
            usage = await self._usage_of(unknown.backend, request_id)
            if usage is not None:
                if usage.headgate is not None and usage.headgate.billable_ns:
                    time_only = Usage(headgate=usage.headgate)  # tokens were counted at once
                    seq = _SEQ + unknown.seq
                    await self._book(settlement, unknown.backend, time_only, unknown.kind, seq)
                return
        self.unknown += 1
        log.warning("usage_lost", request_id=unknown.request_id, backend=unknown.backend)

    async def _usage_of(self, backend: str, request_id: str) -> Usage | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._parts.backends[backend].usage_of(request_id)
        except (BackendError, TimeoutError):
            return None

    async def _book(
        self, settlement: Settlement, backend: str, usage: Usage, kind: ChargeKind, seq: int
    ) -> None:
        parts, request = self._parts, settlement.request
        settings = parts.backend_settings[backend]
        charge = price_usage(
            parts.settings,
            settings,
            usage,
            elapsed_s=0.0,
            in_flight=1,
            kind=kind,
            at=parts.clock(),
            request_id=request.request_id,
            seq=seq,
        )
        caller = Caller(key_id=request.key, team=request.team, user=request.user)
        cost = by_backend([charge])
        await parts.budgets.lease(caller, request.tags, cost, at=request.started_at)
        charges = (*settlement.charges, charge)  # what is there already stays as it is
        heeded_us = parts.budgets.heeded_us
        parts.ledger.settle(Settlement(request=request, charges=charges, heeded_us=heeded_us))
        parts.budgets.add(caller, request.tags, cost, at=request.started_at)
        parts.metrics.count_charge(charge, settings.model)
