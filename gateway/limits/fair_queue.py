"""A weighted fair queue in front of each backend's concurrency limit.

While a backend has room nobody waits and no team matters. When it is full, teams take turns in
proportion to their weights, whatever the number of requests each has waiting, and within a team
first come is first served. A request waits no longer than the queue's deadline. In a full queue the
last request of the team that has most there makes room, so one team's flood refuses only itself.
Requests that nobody waits for (lines of batches) come behind all others, and leave places free.

Source: Demers, Keshav, Shenker 1989, "Analysis and Simulation of a Fair Queueing Algorithm", with
requests as packets of size one: each gets a finish tag, its team's last one (or the virtual time,
if that is later) plus 1 ÷ weight, and the smallest goes first.
"""

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial

from backends.errors import BackendOverloadedError

MOST_WAITING = 1024
BEHIND_S = 300.0
"""Longest wait of a request that nobody waits for."""
_RETRY_AFTER_MAX_S = 60.0
_SMOOTHING = 8
"""Departures that the mean pause between two of them looks back, about."""


class QueueError(BackendOverloadedError):
    """A request found no place here: the backend itself has refused nothing."""


class QueueTimeoutError(QueueError):
    """It waited too long."""


class QueueFullError(QueueError):
    """Too many wait already."""


class FairQueue:
    """One backend's places.

    Args:
        limit: requests at once, as of now.
        timeout_s: longest wait.
        most_waiting: further requests are refused.
    """

    def __init__(
        self,
        name: str,
        limit: Callable[[], int],
        timeout_s: float,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.name = name
        self._limit = limit
        self.running = 0
        self._timeout_s = timeout_s
        self._most_waiting = most_waiting
        self._by_team: Counter[str] = Counter()
        """How many of each team wait."""
        self._left_at = 0.0
        self._pause_s = 0.0
        """Between two departures while somebody waits, on average."""
        self._virtual = 0.0
        self._tags: dict[str, float] = {}
        """The finish tag of each waiting team's last request."""
        self._waiting: list[tuple[float, int, asyncio.Future[None], str]] = []
        self._behind: deque[asyncio.Future[None]] = deque()
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        return self._by_team.total() + sum(not turn.done() for turn in self._behind)

    def retry_after_s(self) -> float:
        """When a request that is refused now may find a place: once those that wait had theirs."""
        expected_s = self._pause_s * (self.waiting + 1)
        return min(max(expected_s, 1.0), _RETRY_AFTER_MAX_S)

    async def enter(self, team: str, weight: int, within_s: float | None = None) -> None:
        """Take a place, now or when it is the team's turn; `leave` gives it back.

        Args:
            within_s: the request can wait no longer than that.

        Raises:
            QueueTimeoutError: no place came free in time.
            QueueFullError: the queue is full, or became so for a team with more requests in it.
        """
        if not self._waiting and self.running < self._limit():
            self.running += 1
            return
        if self.waiting >= self._most_waiting:
            self._make_room(team)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tag = max(self._tags.get(team, 0.0), self._virtual) + 1.0 / weight
        self._tags[team] = tag
        heapq.heappush(self._waiting, (tag, next(self._numbers), turn, team))
        self._by_team[team] += 1
        try:
            longest_s = self._timeout_s if within_s is None else min(self._timeout_s, within_s)
            await self._wait(turn, longest_s)
        finally:
            self._by_team[team] -= 1
            if not self._by_team[team]:
                del self._by_team[team]

    async def enter_behind(self) -> None:
        """Take a place that nobody else wants; `leave` gives it back.

        Raises:
            QueueTimeoutError: there was none for BEHIND_S.
        """
        if not self._waiting and not self._behind and self._has_room_behind():
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._behind.append(turn)
        await self._wait(turn, BEHIND_S)

    async def _wait(self, turn: asyncio.Future[None], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            raise QueueTimeoutError(
                f"backend {self.name!r} is full: no place within {timeout_s:.3g} s",
                backend=self.name,
                retry_after_s=self.retry_after_s(),
            ) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # the place came in the same moment
            raise

    def _has_room_behind(self) -> bool:
        """Whether half of the places stays free for who comes next: of our engines, which are sent
        half as much again as they run at once, that is a quarter of what they run."""
        return self.running < max(1, self._limit() // 2)

    def enter_now(self) -> bool:
        """Take a place if there is one and nobody waits for it; `leave` gives it back."""
        if self._waiting or self.running >= self._limit():
            return False
        self.running += 1
        return True

    def leave(self) -> None:
        """Give a place back; the next in turn takes it."""
        self.running -= 1
        if self._waiting:
            self._note_departure()
        while self._waiting and self.running < self._limit():
            tag, _, turn, _ = heapq.heappop(self._waiting)
            if turn.done():
                continue  # it gave up
            self._virtual = tag
            self.running += 1
            turn.set_result(None)
        while not self._waiting and self._behind and self._has_room_behind():
            turn = self._behind.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
        if not self._waiting:
            self._tags.clear()
            self._virtual = 0.0
            self._left_at = 0.0

    def _note_departure(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._left_at:
            self._pause_s += (now - self._left_at - self._pause_s) / _SMOOTHING
        self._left_at = now

    def _make_room(self, team: str) -> None:
        """Refuse the last request of the team with most here. Raises QueueFullError: it is this
        one."""
        refused = QueueFullError(
            f"backend {self.name!r} is full: {self.waiting} requests wait for a place",
            backend=self.name,
            retry_after_s=self.retry_after_s(),
        )
        largest, most = self._by_team.most_common(1)[0]
        if self._by_team[team] + 1 >= most:
            raise refused
        turns = ((number, turn) for _, number, turn, of in self._waiting if of == largest)
        _, last = max(((n, turn) for n, turn in turns if not turn.done()), key=lambda one: one[0])
        last.set_exception(refused)


class FairQueues:
    """The queues of all backends.

    Args:
        limit_of: requests that this process may have running at a backend, as of now.
        patience: longest wait at a backend, seconds, and the most that may wait.
    """

    def __init__(
        self,
        backends: Iterable[str],
        limit_of: Callable[[str], int],
        patience: Callable[[str], tuple[float, int]],
    ) -> None:
        self._queues = {
            name: FairQueue(name, partial(limit_of, name), *patience(name)) for name in backends
        }

    def of(self, backend: str) -> FairQueue:
        """The backend's queue; KeyError if there is none."""
        return self._queues[backend]

    def waiting(self) -> dict[str, int]:
        """Requests that wait for a place, by backend; for /health."""
        return {name: queue.waiting for name, queue in self._queues.items()}
