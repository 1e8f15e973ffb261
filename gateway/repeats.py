"""What a repeated request need not compute again.

Decoding, features, the policy's decision and the cache key are pure functions of a body and of a
few things beside it (the caller, the policy, the backends' cards, the budget, the minute). For
bodies seen lately the last result of each is kept with those inputs, and used while they are equal.
"""

from collections import OrderedDict
from typing import Any, TypeVar

from backends.contract import Endpoint
from gateway.api.schemas import WireRequest

_T = TypeVar("_T")

MAX_BODIES = 512
MAX_BODY_BYTES = 8_192


class Asked:
    """A decoded body, and what pure functions last made of it."""

    __slots__ = ("_last", "dropped", "needs", "raw", "request")

    def __init__(
        self,
        request: WireRequest,
        raw: dict[str, Any],
        dropped: list[str],
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.request = request
        self.raw = raw
        """The body as the client sent it; read only."""
        self.dropped = dropped
        """Unknown fields that were taken out."""
        self.needs = needs
        """Fields that mean nothing to us, and something to backends that accept them."""
        self._last: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def recall(self, what: str, inputs: tuple[Any, ...]) -> Any:
        """What `remember` kept for equal inputs; None if they changed."""
        last = self._last.get(what)
        return last[1] if last is not None and last[0] == inputs else None

    def remember(self, what: str, inputs: tuple[Any, ...], result: _T) -> _T:
        """Keep a result, in place of the one before."""
        self._last[what] = (inputs, result)
        return result


class Repeats:
    """The bodies of the last MAX_BODIES different requests, by their bytes."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[Endpoint, bytes], Asked] = OrderedDict()

    def get(self, endpoint: Endpoint, body: bytes) -> Asked | None:
        """The same body, if it came lately."""
        found = self._asked.get((endpoint, body))
        if found is not None:
            self._asked.move_to_end((endpoint, body))
        return found

    def put(self, endpoint: Endpoint, body: bytes, asked: Asked) -> None:
        """Keep a body, unless it is long; the one longest unasked goes."""
        if len(body) > MAX_BODY_BYTES:
            return
        if len(self._asked) >= MAX_BODIES:
            self._asked.popitem(last=False)
        self._asked[endpoint, body] = asked
