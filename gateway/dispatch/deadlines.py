"""A request's time, shared among those who may answer it: one that hangs leaves the others theirs.

Only requests with a deadline have such limits. A backend's turn ends early only where somebody
comes after it who can probably still answer in time.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence

from msgspec import Struct

from backends.contract import Chunk, Completion
from gateway.api.sse import Assembler
from gateway.dispatch.turns import TooSlowError
from gateway.exchange import Exchange
from gateway.parts import Parts
from gateway.spending import answer_tokens

_AMPLE = 2.0
"""So many times what nearly all of its answers take is a verdict about the backend."""


class Limit(Struct, frozen=True):
    """The end of one backend's turn."""

    backend: str
    seconds: float
    ends_at: float
    """Of the performance counter."""
    ample: bool
    """Longer than the backend ever needs: one that overruns it is not well."""

    @property
    def left_s(self) -> float:
        return max(self.ends_at - time.perf_counter(), 0.0)

    async def whole(self, work: Coroutine[None, None, Completion]) -> Completion:
        """The answer. Raises TooSlowError where it takes longer."""
        try:
            async with asyncio.timeout(self.left_s):
                return await work
        except TimeoutError:
            raise self._too_slow() from None

    async def first(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
        """The chunks. Raises TooSlowError where the first piece of the answer takes longer."""
        async with contextlib.aclosing(chunks):
            try:
                async with asyncio.timeout(self.left_s):
                    seen = await _first_piece(chunks)
            except TimeoutError:
                raise self._too_slow() from None
            for chunk in seen:
                yield chunk
            async for chunk in chunks:
                yield chunk

    def _too_slow(self) -> TooSlowError:
        return TooSlowError(
            f"backend {self.backend!r} did not answer within {self.seconds:.3g} s, "
            "its part of the time to the deadline",
            backend=self.backend,
        )


def limit_of(parts: Parts, x: Exchange, name: str, after: Sequence[str]) -> Limit | None:
    """The end of a backend's turn; None: there is no deadline, or nobody comes after it.

    Args:
        after: who else may be asked then.
    """
    if x.ends_at is None or not after:
        return None
    now = time.perf_counter()
    left_s = max(x.ends_at - now, 0.0)
    usual_ms = {candidate.backend: candidate.latency_ms for candidate in x.candidates}
    usual_s = [None if (ms := usual_ms.get(other)) is None else ms / 1e3 for other in after]
    slow_s = _slow_s(parts, x, name)
    seconds = share_s(left_s, slow_s, usual_s)
    ample = slow_s is not None and seconds >= _AMPLE * slow_s
    return Limit(backend=name, seconds=seconds, ends_at=now + seconds, ample=ample)


def share_s(left_s: float, slow_s: float | None, after_s: Sequence[float | None]) -> float:
    """How long one backend may take: an equal part at least, and longer where it needs that.

    Args:
        left_s: to the deadline.
        slow_s: what nearly all of its answers take at most, if known.
        after_s: what those after it usually take. Twice that is kept for each, an equal part where
            it is not known, nothing where an equal part would not be enough.
    """
    equal_s = left_s / (1 + len(after_s))
    if slow_s is None:
        return equal_s
    kept_s = 0.0
    for usual_s in after_s:
        if usual_s is None:
            kept_s += equal_s
        elif usual_s <= equal_s:
            kept_s += min(2.0 * usual_s, equal_s)
    return max(equal_s, min(slow_s, left_s - kept_s))


def _slow_s(parts: Parts, x: Exchange, name: str) -> float | None:
    """Nineteen of twenty answers (of streams: their first tokens) take less; None: unknown."""
    assert x.facts is not None
    forecasts, card = parts.router.forecasts, parts.registry.cards()[name]
    if x.streams:
        return forecasts.first_token_s(card)
    longest = forecasts.lengths(name, x.facts.features.task)[2]
    return forecasts.latency_s(card, min(longest, float(answer_tokens(x))))


async def _first_piece(chunks: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """Chunks up to the first that carries a piece of the answer, or all of them."""
    seen, assembler = [], Assembler()
    async for chunk in chunks:
        seen.append(chunk)
        if assembler.add(chunk.body):
            break
    return seen
