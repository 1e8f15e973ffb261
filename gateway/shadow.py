"""Shadow traffic: a copy of a request to another backend, its answer discarded, its cost booked.

The copy runs after the client has its answer, and never changes it. Its charge (kind `shadow`)
joins the request's in the ledger; the request's own cost and headers are without it.
"""

import asyncio
import time

import structlog

from backends.contract import GenerateRequest
from backends.errors import BackendError
from gateway.api.translate import backend_body
from gateway.exchange import Exchange
from gateway.ledger.foreign_time import Unwatched
from gateway.ledger.pricing import price_usage
from gateway.ledger.records import Settlement
from gateway.parts import Parts

log = structlog.get_logger(__name__)

_MOST_AT_ONCE = 32
"""Further copies are left out: an experiment must not crowd out real traffic."""
_SEQ = 1_000
"""Above every charge that the request itself can have."""


class Shadows:
    """Sends copies in the background."""

    def __init__(self, parts: Parts) -> None:
        self.left_out = 0
        self._parts = parts
        self._running: set[asyncio.Task[None]] = set()

    def follow(self, x: Exchange, settlement: Settlement) -> None:
        """Copy a request that a backend has answered, if its policy says so."""
        name = x.decision.shadow if x.decision else None
        if name is None or x.outcome != "ok" or x.hit is not None or name == x.backend:
            return
        if len(self._running) >= _MOST_AT_ONCE:
            self.left_out += 1
            return
        task = asyncio.create_task(self._copy(x, settlement, name), name=f"shadow {x.request_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def settled(self) -> None:
        """Wait for the copies on their way."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def aclose(self) -> None:
        """Give up the copies on their way."""
        for task in self._running:
            task.cancel()
        await self.settled()

    async def _copy(self, x: Exchange, settlement: Settlement, name: str) -> None:
        parts = self._parts
        settings = parts.backend_settings[name]
        assert x.asked is not None
        assert x.facts is not None
        assert x.decision is not None
        request = GenerateRequest(
            request_id=f"{x.request_id}-shadow",
            endpoint=x.endpoint,
            body=backend_body(
                x.asked.raw,
                model=settings.model if settings.kind == "openai" else name,
                needs=x.facts.needs,
                max_tokens=x.decision.max_tokens,
                stream=False,
            ),
            timeout_s=settings.timeout_s,
        )
        began = time.perf_counter()
        try:
            watched, prompt_tokens = Unwatched(), x.facts.features.prompt_tokens
            with parts.registry.running(name), parts.foreign.flight(watched, name, prompt_tokens):
                completion = await parts.backends[name].generate(request)
                in_flight = parts.registry.in_flight(name)
                machine_ns = parts.foreign.end(watched, name, completion.usage)
        except BackendError as error:
            log.warning("shadow_failed", request_id=x.request_id, backend=name, error=error.message)
            return
        charge = price_usage(
            parts.settings,
            settings,
            completion.usage,
            elapsed_s=time.perf_counter() - began,
            in_flight=max(1, in_flight),
            machine_ns=machine_ns,
            kind="shadow",
            at=parts.clock(),
            request_id=x.request_id,
            seq=_SEQ,
        )
        charges = (*settlement.charges, charge)  # what is there already stays as it is
        parts.ledger.settle(Settlement(request=settlement.request, charges=charges))
        parts.metrics.count_charge(charge, settings.model)
