"""Who is asked next when a backend fails: one request's chain of backends, with its retries.

Pure: errors in, turns out. A failed call is followed by another one of the same backend, if that
may help and the budget of retries allows, else by the next backend of the chain. Once the client
has seen a token nothing follows, unless policy and client both allow a restart.
"""

from collections.abc import Callable, Sequence

from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
    ContextLengthError,
)
from gateway.limits.fair_queue import QueueError
from gateway.settings.failure import FailureSettings

HELPS_ELSEWHERE = (
    BackendUnavailableError,
    BackendTimeoutError,
    BackendStreamError,
    BackendResponseError,
)
RESERVE = 10.0
"""Retries that may happen before any request has earned them."""


class ClosedError(BackendOverloadedError):
    """A backend was not asked: its breaker is open."""


class TooSlowError(BackendTimeoutError):
    """A backend did not answer in its part of the time to the request's deadline."""


class RetryBudget:
    """Second calls as a share of first ones, so that an outage does not become a flood.

    Source: Finagle's RetryBudget: first calls pay in a share, second calls take out one.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._most = RESERVE + 100.0 * share
        self.balance = RESERVE if share else 0.0

    def earn(self) -> None:
        """A first call."""
        self.balance = min(self._most, self.balance + self._share)

    def spend(self) -> bool:
        """Whether a second call may be made; it is counted."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        return True


class Turns:
    """The calls of one request, one after another.

    Args:
        names: the chain, first to last; not empty.
        retries: of each backend, as the policy says; None: as configured, of the last one and of
            those with several replicas.
        replicas_of: how many addresses a backend has.
        restart: whether an answer that broke off may begin again.
        draw: a number in [0, 1), for the jitter.
        context_of: a backend's context in tokens, if known.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        settings: FailureSettings,
        budget: RetryBudget,
        draw: Callable[[], float],
        context_of: Callable[[str], int | None],
        replicas_of: Callable[[str], int] = lambda _: 1,
        retries: int | None = None,
        restart: bool = False,
    ) -> None:
        self.backend, *self._left = names
        """Whose turn it is."""
        self._again = 0
        self._settings = settings
        self._budget = budget
        self._draw = draw
        self._context_of = context_of
        self._replicas_of = replicas_of
        self._retries = retries
        self._restart = restart

    @property
    def following(self) -> str | None:
        """The next backend of the chain."""
        return self._left[0] if self._left else None

    @property
    def after_it(self) -> Sequence[str]:
        """The rest of the chain."""
        return self._left

    def after(self, error: BackendError, *, started: bool) -> float | None:
        """Seconds to wait before the next turn, which is then `backend`'s; None: there is none.

        Args:
            started: whether the client has seen a part of the answer.
        """
        if started and not self._restart:
            return None
        if isinstance(error, ContextLengthError):
            return 0.0 if self._move_on(wider_than=self._context_of(self.backend)) else None
        if not isinstance(error, HELPS_ELSEWHERE):
            return None
        pause_s = self._pause_s(error)
        if pause_s is not None and self._budget.spend():
            self._again += 1
            return pause_s
        return 0.0 if self._move_on() else None

    def _pause_s(self, error: BackendError) -> float | None:
        """Before the same backend is asked again; None: it is not."""
        settings = self._settings
        allowed, replicas = self._retries, self._replicas_of(self.backend)
        if allowed is None:
            allowed = 0 if self._left and replicas == 1 else settings.retries
        if self._again >= allowed or not _passing(error):
            return None
        if self._again < replicas - 1:
            return 0.0  # another replica is asked
        mean_s = min(settings.backoff_s * 2.0**self._again, settings.backoff_max_s)
        pause_s = 2.0 * mean_s * self._draw()
        if isinstance(error, BackendOverloadedError):
            if error.retry_after_s > 2.0 * settings.backoff_max_s:
                return None
            pause_s += error.retry_after_s
        return pause_s

    def _move_on(self, wider_than: int | None = None) -> bool:
        while self._left:
            self.backend, self._again = self._left.pop(0), 0
            context = self._context_of(self.backend)
            if wider_than is None or context is None or context > wider_than:
                return True
        return False


def _passing(error: BackendError) -> bool:
    """Whether the same backend may answer in a moment.

    After a timeout all of the request's time is gone; a closed breaker or a full queue has said
    when to come back; refused credentials and unknown models stay what they are.
    """
    if isinstance(error, BackendResponseError):
        return error.status >= 500
    return not isinstance(error, BackendTimeoutError | ClosedError | QueueError)
