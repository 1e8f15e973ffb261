"""A backend's addresses: who gets a request, who is left out for a while, and what is under way.

An address that fails several times in a row, or far more often than another one, is ejected: its
breaker opens, and it is asked last until a request or a probe finds it well. It is never left out
altogether, so a backend whose addresses all fail still gives each a try. One that says 429 is well:
it is asked after the others for as long as it wants.
"""

import time
from collections.abc import Callable, Sequence

from backends.client.http_replica import Replica
from backends.client.prefixes import prefix_blocks
from backends.client.replica_choice import ReplicaChoice
from backends.contract import GenerateRequest
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendRateLimitedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
)

_SMOOTHING = 16
_OUTLIER_SHARE = 0.5
_WELL_SHARE = 0.1
_ANSWER_TOKENS = 256
"""Assumed of an answer without max_tokens."""
_ITS_FAULT = (
    BackendUnavailableError,
    BackendTimeoutError,
    BackendStreamError,
    BackendResponseError,
)


class Place:
    """One request's place at a replica."""

    __slots__ = ("_set", "number", "replica", "request_id", "tokens")

    def __init__(
        self, owner: "ReplicaSet", number: int, request_id: str, blocks: Sequence[int], tokens: int
    ) -> None:
        self._set = owner
        self.number = number
        self.replica = owner.replicas[number]
        self.request_id = request_id
        self.tokens = tokens
        owner.choice.begin(number, blocks, tokens)
        owner.at[request_id] = number

    def leave(self) -> None:
        """The request is over there, whatever came of it."""
        self._set.choice.end(self.number, self.tokens)
        self._set.at.pop(self.request_id, None)
        self.replica.breaker.release()

    def answered(self) -> None:
        """The replica did what it was asked."""
        self._set.note(self.replica, None)

    def failed(self, error: BaseException) -> None:
        """It did not; whether that is its fault, the error says."""
        if isinstance(error, BackendRateLimitedError):
            self._set.cool(self.replica, error.retry_after_s)
        elif isinstance(error, _ITS_FAULT) and not isinstance(error, BackendOverloadedError):
            self._set.note(self.replica, error)


class ReplicaSet:
    """The replicas of one backend; a single one costs nothing.

    Attributes:
        on_breaker: told of each address that was ejected or is back.
    """

    def __init__(
        self, replicas: list[Replica], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.replicas = replicas
        self.choice = ReplicaChoice([replica.address for replica in replicas], clock=clock)
        self.at: dict[str, int] = {}
        """By request id, the replica that works on it."""
        self.on_breaker: Callable[[str], None] | None = None
        self._clock = clock

    def in_order(self, request: GenerateRequest, blocks: Sequence[int], tokens: int) -> list[int]:
        """Numbers of the replicas, the best first."""
        if len(self.replicas) == 1:
            return [0]
        now, beside = self._clock(), self.at.get(request.beside or "")
        ranks = [self._rank(replica, now) for replica in self.replicas]
        left = [number for number in range(len(ranks)) if number != beside] or [0]
        order = []
        while left:
            best = min(ranks[number] for number in left)
            usable = [number for number in left if ranks[number] == best]
            chosen = self.choice.choose(blocks, tokens, usable)
            order.append(chosen)
            left.remove(chosen)
        if beside is not None and beside not in order:
            order.append(beside)
        return order

    def size_of(self, request: GenerateRequest, body_bytes: int) -> tuple[tuple[int, ...], int]:
        """The beginnings of a request's prompt, and its tokens, about."""
        if len(self.replicas) == 1:
            return (), 0
        body = request.body
        answer = body.get("max_completion_tokens") or body.get("max_tokens") or _ANSWER_TOKENS
        return prefix_blocks(body), body_bytes // 4 + min(int(answer), _ANSWER_TOKENS)

    def take(
        self, number: int, request: GenerateRequest, blocks: Sequence[int], tokens: int
    ) -> Place:
        """A place for a request that is sent there now."""
        replica = self.replicas[number]
        if replica.breaker.opened:
            replica.breaker.admits(self._clock())
        return Place(self, number, request.request_id, blocks, tokens)

    def note(self, replica: Replica, error: BaseException | None) -> None:
        """An answer, or a failure that is the replica's fault."""
        if len(self.replicas) == 1:
            return
        replica.failing += ((error is not None) - replica.failing) / _SMOOTHING
        now = self._clock()
        if error is None:
            if replica.breaker.state(now) == "open":
                return  # it was asked before it was ejected
            changed = replica.breaker.success()
        else:
            words = error.message if isinstance(error, BackendError) else str(error)
            if self._is_outlier(replica):
                changed = replica.breaker.eject(now, words)
            else:
                changed = replica.breaker.failure(now, words)
        if changed:
            self._tell(replica)

    def cool(self, replica: Replica, asked_s: float) -> None:
        """It wants no more requests for a while."""
        cool_s = min(asked_s, replica.breaker.settings.open_max_s)
        replica.cool_until = max(replica.cool_until, self._clock() + cool_s)

    def cooled_s(self) -> float:
        """For how long no replica wants requests."""
        return max(min(one.cool_until for one in self.replicas) - self._clock(), 0.0)

    def probed(self, number: int, ready: bool) -> None:
        """What a probe found; an address that is back starts anew, with nothing warm."""
        replica = self.replicas[number]
        if ready and not replica.ready:
            self.choice.forget(number)
            replica.failing = 0.0
            if replica.breaker.opened:
                replica.breaker.close()
                self._tell(replica)
        replica.ready = ready

    def _is_outlier(self, replica: Replica) -> bool:
        """Whether it fails often while another one is well."""
        others = (other.failing for other in self.replicas if other is not replica)
        return replica.failing > _OUTLIER_SHARE and min(others) < _WELL_SHARE

    @staticmethod
    def _rank(replica: Replica, now: float) -> int:
        """0: well; 1: just refused a connection, or said 429; 2: not ready, or ejected."""
        half_open_is_taken = replica.breaker.trial
        if not replica.ready or replica.breaker.state(now) == "open" or half_open_is_taken:
            return 2
        return int(max(replica.skip_until, replica.cool_until) > now)

    def _tell(self, replica: Replica) -> None:
        if self.on_breaker is not None:
            self.on_breaker(replica.address)
