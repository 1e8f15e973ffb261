"""Rate limits as the pipeline sees them: ask before anything runs, correct when it has run.

A caller without limits never comes here. What a request will use is held as its prompt's estimate
and its most answer tokens, and corrected at its end; a request that a cache answers counts as one
request and no tokens. With Redis away each process goes on with its share of the limits, or refuses
(`[limits] on_redis_outage`).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from gateway.cache.model import StoreUnavailable
from gateway.errors import RateLimited, Unavailable
from gateway.ledger.keys import Caller
from gateway.ledger.money import usd_text
from gateway.limits.window import LARGER_THAN_LIMIT, Demand, LimitStore, MemoryLimits, Verdict
from gateway.settings import LimitSettings

log = structlog.get_logger(__name__)

BEAT_S = 2.0
_NAMES = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "usd": "dollars per minute",
    "concurrent": "concurrent requests",
}
RawHeaders = tuple[tuple[bytes, bytes], ...]


class Limiter:
    """One per gateway process.

    Args:
        shared: where all processes count; None: in this process alone.
        processes: how many there are until a beat says.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        shared: LimitStore | None,
        settings: LimitSettings,
        *,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._settings = settings
        self._local = MemoryLimits(clock)
        self._processes = max(processes, 1)
        self._away = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Say that this process lives, now and then on."""
        await self._beat()
        self._task = asyncio.create_task(self._beats(), name="limits-beat")

    async def aclose(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def ask(self, caller: Caller, *, tokens: int, nano_usd: int) -> "Admission":
        """Begin to ask for a request of a limited caller; `Admission.wait` has the answer.

        Args:
            tokens: the prompt's and the most of the answer.
            nano_usd: the most it should cost.
        """
        demands: list[Demand] = []
        for subject, limits in ((one.subject, one.limits) for one in caller.limited):
            if limits.concurrent_requests is not None:
                demands.append(Demand(subject, "concurrent", limits.concurrent_requests, 1))
            if limits.requests_per_minute is not None:
                demands.append(Demand(subject, "requests", limits.requests_per_minute, 1))
            if limits.tokens_per_minute is not None:
                demands.append(Demand(subject, "tokens", limits.tokens_per_minute, tokens))
            if limits.nano_usd_per_minute is not None:
                demands.append(Demand(subject, "usd", limits.nano_usd_per_minute, nano_usd))
        return Admission(asyncio.ensure_future(self._admit(demands)))

    async def _admit(self, demands: list[Demand]) -> "Answer":
        if self._shared is not None:
            try:
                verdict = await self._shared.admit(demands)
            except StoreUnavailable as error:
                self._note(error)
                if self._settings.on_redis_outage == "refuse":
                    raise Unavailable("Rate limits cannot be checked now; try again.") from None
            else:
                self._away = False
                return Answer(demands, verdict, self._shared)
        shares = [
            Demand(d.subject, d.kind, max(d.limit // self._processes, 1), d.amount) for d in demands
        ]
        return Answer(shares, await self._local.admit(shares), self._local)

    def report(self) -> dict[str, Any]:
        """For /health."""
        return {"shared": self._shared is not None, "away": self._away, "live": self._processes}

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._beat()

    async def _beat(self) -> None:
        await self._local.beat()
        if self._shared is None:
            return
        try:
            self._processes = max(await self._shared.beat(), 1)
            self._away = False
        except StoreUnavailable as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        if not self._away:
            log.warning("limits_store_lost", error=str(error)[:300], processes=self._processes)
        self._away = True


class Answer(NamedTuple):
    """What came of asking."""

    demands: list[Demand]
    """With Redis away: of this process's share."""
    verdict: Verdict
    store: LimitStore
    """Which counted it."""


class Admission:
    """A request's place under its caller's limits, from asking to its end."""

    __slots__ = ("_answer", "_ended", "headers")

    def __init__(self, answer: "asyncio.Future[Answer]") -> None:
        self._answer = answer
        self._ended = False
        self.headers: RawHeaders = ()
        """OpenAI's x-ratelimit-*, once the answer is there."""

    async def wait(self) -> None:
        """Wait for the answer.

        Raises:
            RateLimited: a limit is reached.
            Unavailable: Redis is away, and that is to refuse.
        """
        demands, verdict, _ = await asyncio.shield(self._answer)
        self.headers = _headers(demands, verdict)
        if verdict.refused is not None:
            raise _refusal(demands[verdict.refused], verdict)

    def end(self, *, tokens: int, nano_usd: int) -> None:
        """Count what was really used, and no longer as under way. Ending again changes nothing."""
        if self._ended:
            return
        self._ended = True
        used = {"tokens": tokens, "usd": nano_usd, "concurrent": 0}

        def correct(answer: "asyncio.Future[Answer]") -> None:
            if answer.cancelled() or answer.exception() is not None:
                return
            demands, verdict, store = answer.result()
            if verdict.refused is not None:
                return
            changes = [
                (demand, more)
                for demand in demands
                if (more := used.get(demand.kind, demand.amount) - demand.amount)
            ]
            if changes:
                store.correct(changes, verdict.slot)

        if self._answer.done():
            correct(self._answer)
        else:
            self._answer.add_done_callback(correct)


def _headers(demands: list[Demand], verdict: Verdict) -> RawHeaders:
    """Of requests and tokens; of several limits of a kind the one with the smallest part left."""
    found: list[tuple[bytes, bytes]] = []
    for kind in ("requests", "tokens"):
        of_kind = [
            (max(demand.limit - level.used, 0) / demand.limit, demand, level)
            for demand, level in zip(demands, verdict.levels, strict=True)
            if demand.kind == kind
        ]
        if not of_kind:
            continue
        _, demand, level = min(of_kind, key=lambda one: one[0])
        name = kind.encode()
        remaining = max(demand.limit - level.used, 0)
        found += [
            (b"x-ratelimit-limit-" + name, b"%d" % demand.limit),
            (b"x-ratelimit-remaining-" + name, b"%d" % remaining),
            (b"x-ratelimit-reset-" + name, duration_text(level.reset_ms).encode()),
        ]
    return tuple(found)


def _refusal(demand: Demand, verdict: Verdict) -> RateLimited:
    amounts = (demand.limit, demand.amount)
    limit, asked = (usd_text(n) for n in amounts) if demand.kind == "usd" else map(str, amounts)
    which = f"{_NAMES[demand.kind]} of {demand.subject}: {limit}"
    if verdict.retry_ms == LARGER_THAN_LIMIT:
        return RateLimited(
            f"This request alone may use {asked}, more than the limit of {which}; a smaller "
            "max_tokens lowers it."
        )
    return RateLimited(
        f"The limit of {which} is reached; try again in {duration_text(verdict.retry_ms)}.",
        retry_after_s=-(-verdict.retry_ms // 1000),
    )


def duration_text(milliseconds: int) -> str:
    """As OpenAI writes durations: 120ms, 1s, 6m0s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    seconds = -(-milliseconds // 1000)
    return f"{seconds}s" if seconds < 60 else f"{seconds // 60}m{seconds % 60}s"
