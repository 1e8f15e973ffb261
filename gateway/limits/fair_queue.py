"""A weighted fair queue in front of each backend's concurrency limit.

While a backend has room nobody waits and no team matters. When it is full, teams take turns in
proportion to their weights, whatever the number of requests each has waiting, and within a team
first come is first served. A request waits no longer than the queue's deadline.

Source: Demers, Keshav, Shenker 1989, "Analysis and Simulation of a Fair Queueing Algorithm", with
requests as packets of size one: each gets a finish tag, its team's last one (or the virtual time,
if that is later) plus 1 ÷ weight, and the smallest goes first.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterable
from functools import partial

from backends.errors import BackendOverloadedError

RETRY_AFTER_S = 1.0


class QueueTimeoutError(BackendOverloadedError):
    """A request waited too long here: the backend itself has refused nothing."""


class FairQueue:
    """One backend's places.

    Args:
        limit: requests at once, as of now.
        timeout_s: longest wait.
    """

    def __init__(self, name: str, limit: Callable[[], int], timeout_s: float) -> None:
        self.name = name
        self._limit = limit
        self.running = 0
        self._timeout_s = timeout_s
        self._virtual = 0.0
        self._tags: dict[str, float] = {}
        """The finish tag of each waiting team's last request."""
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for _, _, turn in self._waiting)

    async def enter(self, team: str, weight: int) -> None:
        """Take a place, now or when it is the team's turn; `leave` gives it back.

        Raises:
            QueueTimeoutError: no place came free in time.
        """
        if not self._waiting and self.running < self._limit():
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tag = max(self._tags.get(team, 0.0), self._virtual) + 1.0 / weight
        self._tags[team] = tag
        heapq.heappush(self._waiting, (tag, next(self._numbers), turn))
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except TimeoutError:
            raise QueueTimeoutError(
                f"backend {self.name!r} is full: no place within {self._timeout_s:g} s",
                backend=self.name,
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place came in the same moment
            raise

    def leave(self) -> None:
        """Give a place back; the next in turn takes it."""
        self.running -= 1
        while self._waiting and self.running < self._limit():
            tag, _, turn = heapq.heappop(self._waiting)
            if turn.done():
                continue  # it gave up
            self._virtual = tag
            self.running += 1
            turn.set_result(None)
        if not self._waiting:
            self._tags.clear()
            self._virtual = 0.0


class FairQueues:
    """The queues of all backends.

    Args:
        limit_of: requests that this process may have running at a backend, as of now.
    """

    def __init__(
        self, backends: Iterable[str], limit_of: Callable[[str], int], timeout_s: float
    ) -> None:
        self._queues = {
            name: FairQueue(name, partial(limit_of, name), timeout_s) for name in backends
        }

    def of(self, backend: str) -> FairQueue:
        """The backend's queue; KeyError if there is none."""
        return self._queues[backend]

    def waiting(self) -> dict[str, int]:
        """Requests that wait for a place, by backend; for /health."""
        return {name: queue.waiting for name, queue in self._queues.items()}
