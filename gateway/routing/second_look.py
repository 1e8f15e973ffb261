"""A second look at a request: the sentence encoder is asked where that may pay.

The gateway's own head decides alone, unless the policy wants a second opinion always, or the head
is unsure (the decision would be another one if its predictions were off by as much as they usually
are) and the candidates' prices lie far enough apart. The encoder is a process of its own and
encodes what arrives together in one batch. An encoder that is late is not waited for: the first
opinion stands, and its vector still serves the semantic cache.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Literal

import structlog
from msgspec import Struct
from msgspec.structs import replace

from backends.errors import BackendError
from gateway.cache.semantic import Encoder, Encoding, heed
from gateway.routing.second_head import MAX_CHARS, SecondHead
from policies.model import Decision, RequestFeatures
from policies.uncertainty import depends, moved

log = structlog.get_logger(__name__)

Result = Literal["used", "late", "failed"]
Wish = Literal["always", "unsure", "never"]
MEMORY = 4096
"""Texts whose second opinion is remembered."""


class Looked(Struct, frozen=True, kw_only=True):
    """What came of it."""

    result: Result
    features: RequestFeatures
    """With the second opinion, or as they were."""
    encoding: Encoding | None = None
    """On its way or done, to be paid for; None: the opinion was remembered."""


class SecondLooks:
    """Decides whether to look again, and looks; one per gateway process.

    Args:
        reference: the backend that difficulty is told of.
        deadline_s: how long the encoder is waited for.
        min_gap_nano_usd: between the dearest and the cheapest candidate's expected costs, from
            which it is worth it where the head is unsure.
        otherwise: for policies that say nothing about it.
        count: told of each result.
    """

    def __init__(
        self,
        head: SecondHead,
        encoder: Encoder,
        *,
        reference: str,
        deadline_s: float,
        min_gap_nano_usd: int,
        otherwise: Wish = "unsure",
        count: Callable[[Result], None] = lambda _result: None,
    ) -> None:
        self.encoder = encoder
        self._head = head
        self._reference = reference
        self._deadline_s = deadline_s
        self._min_gap = min_gap_nano_usd
        self._otherwise = otherwise
        self._count = count
        self._shift = dict(zip(head.backends, head.shift, strict=True))
        self._opinions: OrderedDict[bytes, dict[str, float]] = OrderedDict()
        self.results: Counter[Result] = Counter()
        """Since this process began."""

    def why_not(
        self,
        wish: Wish | None,
        features: RequestFeatures,
        decision: Decision,
        costs: Callable[[str], int | None],
        again: Callable[[RequestFeatures], Decision],
    ) -> str | None:
        """Why there is no second look; None: there should be one.

        Args:
            wish: the policy's.
            costs: expected of a candidate's answer, nano-dollars.
            again: the decision on other features.
        """
        wish = wish or self._otherwise
        if wish == "never":
            return "the policy wants none"
        if len(decision.candidates) < 2:
            return "there is nothing to choose from"
        if not all(name in features.quality for name in self._head.backends):
            return "the first head does not know the second one's backends"
        if wish == "always":
            return None
        known = [cost for cost in map(costs, decision.candidates) if cost is not None]
        gap = max(known) - min(known) if known else 0
        if gap < self._min_gap:
            return f"candidates cost within ${gap / 1e9:.3g} of each other"
        others = moved(features.quality, self._shift, self._head.backends)
        if not depends(decision, lambda q: again(self._with(features, q)), others):
            return "the first head is sure enough"
        return None

    async def look(self, text: str, features: RequestFeatures) -> Looked:
        """Ask the encoder, as long as the deadline allows."""
        shown = text.strip()[:MAX_CHARS]
        told = f"{sorted(features.quality.items())}{shown}".encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(told, digest_size=16).digest()
        known = self._opinions.get(key)
        if known is not None:
            return self._counted("used", self._with(features, known), None)
        if not shown:
            return self._counted("failed", features, None)
        encoding = asyncio.create_task(self.encoder.encode(shown))
        encoding.add_done_callback(heed)
        try:
            done, _ = await asyncio.wait({encoding}, timeout=self._deadline_s)
        except BaseException:
            encoding.cancel()  # nobody will charge it to anyone
            raise
        if not done:
            return self._counted("late", features, encoding)
        try:
            quality = self._head.quality(features.quality, encoding.result().vector)
        except (BackendError, ValueError, LookupError) as error:  # or a vector of another size
            log.info("second_look_failed", error=str(error)[:200])
            return self._counted("failed", features, encoding)
        self._opinions[key] = quality
        if len(self._opinions) > MEMORY:
            self._opinions.popitem(last=False)
        return self._counted("used", self._with(features, quality), encoding)

    def _counted(
        self, result: Result, features: RequestFeatures, encoding: Encoding | None
    ) -> Looked:
        self.results[result] += 1
        self._count(result)
        return Looked(result=result, features=features, encoding=encoding)

    def _with(self, features: RequestFeatures, quality: dict[str, float]) -> RequestFeatures:
        known = quality.get(self._reference)
        difficulty = features.difficulty if known is None else 1.0 - known
        return replace(features, quality=quality, difficulty=difficulty)
