"""Shadow traffic: a copy of a request to another backend, its answer discarded, its cost booked.

The copy runs after the client has its answer, and never changes it. Its charge (kind `shadow`)
joins the request's in the ledger; the request's own cost and headers are without it. How it ended
stands in the table `shadows`: see `headgate report experiment`.
"""

import time
from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from backends.contract import GenerateRequest
from backends.errors import BackendError
from gateway.api.translate import backend_body
from gateway.background import Background
from gateway.exchange import Exchange
from gateway.ledger.database import insert_once, writing
from gateway.ledger.foreign_machine import Unwatched
from gateway.ledger.pricing import price_usage
from gateway.ledger.records import Settlement
from gateway.ledger.tables import shadows
from gateway.parts import Parts

log = structlog.get_logger(__name__)

_MOST_AT_ONCE = 32
"""Further copies are left out: an experiment must not crowd out real traffic."""
_MOST_WORDS = 500
_SEQ = 1_000
"""Above every charge that the request itself can have."""


class Shadows:
    """Sends copies in the background."""

    def __init__(self, parts: Parts) -> None:
        self.left_out = 0
        self._parts = parts
        self._running = Background()

    def follow(self, x: Exchange, settlement: Settlement) -> None:
        """Copy a request that a backend has answered, if its policy says so."""
        name = x.decision.shadow if x.decision else None
        if name is None or x.outcome != "ok" or x.hit is not None or name == x.backend:
            return
        if len(self._running) >= _MOST_AT_ONCE:
            self.left_out += 1
            return
        self._running.start(self._copy(x, settlement, name), name=f"shadow {x.request_id}")

    async def settled(self) -> None:
        """Wait for the copies on their way."""
        await self._running.settled()

    async def aclose(self) -> None:
        """Give up the copies on their way."""
        await self._running.aclose()

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
            flight = parts.foreign.flight(watched, name, prompt_tokens, request.body)
            with parts.registry.running(name), flight:
                completion = await parts.backends[name].generate(request)
                in_flight = parts.registry.in_flight(name)
                machine_ns = parts.foreign.end(watched, name, completion.usage)
        except BackendError as error:
            log.warning("shadow_failed", request_id=x.request_id, backend=name, error=error.message)
            await self._record(x, name, began, error=error.message[:_MOST_WORDS])
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
        await self._record(
            x,
            name,
            began,
            completion_tokens=charge.completion_tokens,
            cost_nano_usd=charge.cost_nano_usd,
            finish_reason=str(_choice(completion.body).get("finish_reason") or ""),
            same=_text(completion.body) == _text(x.answer or {}),
        )

    async def _record(self, x: Exchange, name: str, began: float, **outcome: Any) -> None:
        """Write down how a copy ended: lost while the database is away, unlike its charge."""
        values = {
            "request_id": x.request_id,
            "backend": name,
            "at_us": round(self._parts.clock() * 1e6),
            "ms": (time.perf_counter() - began) * 1e3,
            **outcome,
        }
        engine = self._parts.engine
        try:
            async with writing(engine) as connection:
                await connection.execute(insert_once(engine.dialect.name, shadows).values(**values))
        except (SQLAlchemyError, OSError) as error:
            log.warning("shadow_not_recorded", request_id=x.request_id, error=str(error)[:200])


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = body.get("choices") or [{}]
    first: Mapping[str, Any] = choices[0]
    return first


def _text(body: Mapping[str, Any]) -> str:
    """What the first choice says."""
    choice = _choice(body)
    message = choice.get("message")
    said = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    return str(said or "").strip()
