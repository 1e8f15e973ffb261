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
from functools import partial
from typing import Any, NamedTuple

import structlog
from redis.exceptions import ResponseError

from gateway.cache.model import StoreUnavailable
from gateway.errors import GatewayError, RateLimited, Unavailable
from gateway.ledger.keys import Caller
from gateway.ledger.money import usd_text
from gateway.limits.redis_store import RedisLimits
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
        shared: RedisLimits | None,
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
        self._asking: set[asyncio.Task[Any]] = set()
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
        admission = Admission()
        if self._shared is None:
            admission.answered(self._alone(demands))
        elif (asked := self._shared.begin(demands)) is not None:
            asked.add_done_callback(partial(self._told, admission, demands))
        else:
            self._ask_again(admission, demands)
        return admission

    def _told(
        self, admission: "Admission", demands: list[Demand], asked: "asyncio.Future[Any]"
    ) -> None:
        assert self._shared is not None
        error = asked.exception()
        if error is None:
            verdict = self._shared.verdict(asked.result())
            admission.answered(Answer(demands, verdict, self._shared))
        elif isinstance(error, ResponseError):  # it was restarted, and has forgotten the script
            self._ask_again(admission, demands)
        else:
            admission.answered(self._without(error, demands))

    def _ask_again(self, admission: "Admission", demands: list[Demand]) -> None:
        """On a connection that is yet to be opened, or with a script that is yet to be sent."""
        task = asyncio.ensure_future(self._admit(demands))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        task.add_done_callback(lambda done: admission.answered(done.exception() or done.result()))

    async def _admit(self, demands: list[Demand]) -> "Answer | GatewayError":
        assert self._shared is not None
        try:
            verdict = await self._shared.admit(demands)
        except StoreUnavailable as error:
            return self._without(error, demands)
        self._away = False
        return Answer(demands, verdict, self._shared)

    def _without(self, error: BaseException, demands: list[Demand]) -> "Answer | GatewayError":
        self._note(error)
        if self._settings.on_redis_outage == "refuse":
            return Unavailable("Rate limits cannot be checked now; try again.")
        return self._alone(demands)

    def _alone(self, demands: list[Demand]) -> "Answer":
        shares = [
            Demand(d.subject, d.kind, max(d.limit // self._processes, 1), d.amount) for d in demands
        ]
        return Answer(shares, self._local.count(shares), self._local)

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

    def _note(self, error: BaseException) -> None:
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

    __slots__ = ("_answer", "_used", "_waiter", "headers")

    def __init__(self) -> None:
        self._answer: Answer | BaseException | None = None
        self._used: dict[str, int] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.headers: RawHeaders = ()
        """OpenAI's x-ratelimit-*, once the answer is there."""

    def answered(self, answer: "Answer | BaseException") -> None:
        """What came of asking; the request may be over already."""
        self._answer = answer
        if self._used is not None:
            self._correct(answer, self._used)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the answer.

        Raises:
            RateLimited: a limit is reached.
            Unavailable: Redis is away, and that is to refuse.
        """
        if self._answer is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        assert self._answer is not None
        if isinstance(self._answer, BaseException):
            raise self._answer
        demands, verdict, _ = self._answer
        self.headers = _headers(demands, verdict)
        if verdict.refused is not None:
            raise _refusal(demands[verdict.refused], verdict)

    def end(self, *, tokens: int, nano_usd: int) -> None:
        """Count what was really used, and no longer as under way. Ending again changes nothing."""
        if self._used is not None:
            return
        self._used = {"tokens": tokens, "usd": nano_usd, "concurrent": 0}
        if self._answer is not None:
            self._correct(self._answer, self._used)

    @staticmethod
    def _correct(answer: "Answer | BaseException", used: dict[str, int]) -> None:
        if isinstance(answer, BaseException) or answer.verdict.refused is not None:
            return
        demands, verdict, store = answer
        changes = [
            (demand, more)
            for demand in demands
            if (more := used.get(demand.kind, demand.amount) - demand.amount)
        ]
        if changes:
            store.correct(changes, verdict.slot)


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
