"""One machine's time, handed out once: every process that computes on it maps the same small file.

A machine costs the same whether one of its engines is busy or three, so busy engines must share
its time, not each be charged all of it. At every *event* (a step ends, work begins or ends) the
time since the last event, whoever made it, is split among the processes that were working, in
proportion to the CPU time that each of them took meanwhile (an engine on a GPU weighs as if it
kept the whole device busy: that is how a GPU divides its time; a process that only asks a server
there weighs what it says). The split is of integers and
exact, so all shares together are the time during which anybody worked, never more.

Idle time is not what the shares leave over. It has stamps of its own: it begins when the last
working process says that it has no runnable request, and ends when one says that it has.

Words of 8 bytes, native order; changed under a file lock, which the kernel takes back from a
process that dies. What a dead process worked for and never reported is its lost time.
"""

import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from backends.shares import share

METER_ENV: Final = "HEADGATE_METER"
"""PATH:PLACE, set by the supervisor for each child that computes."""

_MAGIC: Final = 0x6864676D31
_HEAD: Final = 8
_SLOT: Final = 16
_AT, _IDLE_SINCE, _IDLE_NS, _COUNT = 1, 2, 3, 4
_PID, _STATE, _CPU_SEEN, _ON_GPU = 0, 1, 2, 3
_STARTUP, _LOADING, _WORKING, _REPORTED, _LOST, _WEIGHT = 4, 5, 6, 7, 8, 9

ABSENT: Final = 0
IDLE: Final = 1
# Working states; each has the word that its shares are added to.
STARTING: Final = 2
LOADING: Final = 3
WORKING: Final = 4
_WORD_OF: Final = {STARTING: _STARTUP, LOADING: _LOADING, WORKING: _WORKING}


class SlotReading(Struct, frozen=True, kw_only=True):
    """One process's nanoseconds of the machine since the meter was made."""

    startup_ns: int
    """From the supervisor's start of the process until it could read its options."""
    loading_ns: int
    """Until it could take requests."""
    working_ns: int
    """With a request to work on."""
    lost_ns: int
    """Of the working time: what brought nobody anything, or was unreported at the process's end."""


class MeterReading(Struct, frozen=True, kw_only=True):
    """A machine's time since the meter was made."""

    idle_ns: int
    """Processes were there, and none had a request."""
    slots: dict[str, SlotReading]
    running: bool = True
    """Whether any process is there."""


class Meter:
    """The file of one machine. One thread at a time may use an instance."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str] | None = None,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: "Callable[[int], int | None] | None" = None,
    ) -> None:
        """Open the file, or make it for the processes called `names`.

        Args:
            now_ns: a clock that all processes of the machine share.
            cpu_ns: a process's CPU time by its pid; None for one that is gone.

        Raises:
            OSError: it cannot be made or mapped.
            ValueError: it is no meter.
        """
        self.path = path
        self.names = tuple(names or ())
        self._now_ns = now_ns
        self._cpu_ns = cpu_ns or process_cpu_ns
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if names is not None else 0)
        self._fd = os.open(path, flags, 0o600)
        if names is not None:
            os.ftruncate(self._fd, 8 * (_HEAD + _SLOT * len(names)))
        self._map = mmap.mmap(self._fd, 0)
        self._words = memoryview(self._map).cast("q")
        if names is not None:
            self._words[_COUNT] = len(names)
            self._words[_AT] = now_ns()
            self._words[0] = _MAGIC
        elif self._words[0] != _MAGIC:
            raise ValueError(f"{path} is no meter; it is made by `headgate serve`")
        self._slots = [_HEAD + _SLOT * place for place in range(self._words[_COUNT])]

    def close(self) -> None:
        """Unmap the file."""
        self._words.release()
        self._map.close()
        os.close(self._fd)

    def enter(self, place: int, pid: int) -> None:
        """The supervisor has started a process: until that says otherwise, it is starting."""
        with self._event() as now_ns:
            words, slot = self._words, self._slots[place]
            words[slot + _PID], words[slot + _REPORTED] = pid, words[slot + _WORKING]
            words[slot + _ON_GPU] = words[slot + _WEIGHT] = 0
            self._change(slot, STARTING, now_ns)

    def leave(self, place: int) -> None:
        """The supervisor has seen a process end: what it had not reported is lost."""
        with self._event() as now_ns:
            words, slot = self._words, self._slots[place]
            words[slot + _LOST] += max(0, words[slot + _WORKING] - words[slot + _REPORTED])
            words[slot + _REPORTED] = words[slot + _WORKING]
            self._change(slot, ABSENT, now_ns)

    def change(self, place: int, state: int) -> int:
        """Say what a process does from now on; its working nanoseconds until now."""
        with self._event() as now_ns:
            slot = self._slots[place]
            self._change(slot, state, now_ns)
            return self._words[slot + _WORKING]

    def claim(self, first: int = 0) -> "MeterSlot":
        """A place for this process, idle: the first from `first` on that nobody alive has.

        Raises:
            ValueError: all are taken.
        """
        for place in range(first, len(self._slots)):
            slot = self._slots[place]
            pid = self._words[slot + _PID]
            if self._words[slot + _STATE] == ABSENT or not _alive(pid) or pid == os.getpid():
                self.leave(place)
                self.enter(place, os.getpid())
                own = MeterSlot(self, place)
                own._taken_ns = self.change(place, IDLE)
                return own
        raise ValueError(f"{self.path} has no place left for another process")

    def weigh(self, place: int, weight: int) -> None:
        """From the next event on a process counts so much against others that weigh themselves."""
        with self._event():
            self._words[self._slots[place] + _WEIGHT] = weight

    def working_ns(self, place: int) -> int:
        """A process's working nanoseconds until now."""
        with self._event():
            return self._words[self._slots[place] + _WORKING]

    def report(self, place: int, ns: int) -> None:
        """Working time that was told to whoever pays for it."""
        self._words[self._slots[place] + _REPORTED] += ns

    def lose(self, place: int, ns: int) -> None:
        """Working time that brought nobody anything."""
        self._words[self._slots[place] + _LOST] += ns
        self.report(place, ns)

    def use_gpu(self, place: int) -> None:
        """The process computes on a GPU: its CPU time says nothing."""
        self._words[self._slots[place] + _ON_GPU] = 1

    def read(self) -> MeterReading:
        """All totals up to now."""
        with self._event() as now_ns:
            words = self._words
            since_ns = words[_IDLE_SINCE]
            idle_ns = words[_IDLE_NS] + (now_ns - since_ns if since_ns else 0)
            return MeterReading(
                idle_ns=idle_ns,
                slots={
                    name: SlotReading(
                        startup_ns=words[slot + _STARTUP],
                        loading_ns=words[slot + _LOADING],
                        working_ns=words[slot + _WORKING],
                        lost_ns=words[slot + _LOST],
                    )
                    for name, slot in zip(self.names, self._slots, strict=True)
                },
                running=any(words[slot + _STATE] != ABSENT for slot in self._slots),
            )

    @contextlib.contextmanager
    def _event(self) -> Iterator[int]:
        """Hold the lock, with all time until now handed out."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            now_ns = self._now_ns()
            self._hand_out(now_ns)
            yield now_ns
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _hand_out(self, now_ns: int) -> None:
        words = self._words
        elapsed_ns = now_ns - words[_AT]
        # First: a process killed in between loses time, but none is ever handed out twice.
        words[_AT] = now_ns
        workers = [slot for slot in self._slots if words[slot + _STATE] >= STARTING]
        if elapsed_ns <= 0 or not workers:
            return
        if len(workers) == 1:
            words[workers[0] + _WORD_OF[words[workers[0] + _STATE]]] += elapsed_ns
            return
        weights = [self._worked(slot, elapsed_ns) for slot in workers]
        if not any(weights):
            weights = [1] * len(workers)
        for slot, ns in zip(workers, share(elapsed_ns, weights), strict=True):
            words[slot + _WORD_OF[words[slot + _STATE]]] += ns

    def _worked(self, slot: int, elapsed_ns: int) -> int:
        """What a process's share of the last stretch is in proportion to."""
        words = self._words
        if words[slot + _WEIGHT]:
            return elapsed_ns * words[slot + _WEIGHT]
        if words[slot + _ON_GPU]:
            return elapsed_ns * _CPUS
        cpu_ns = self._cpu_ns(words[slot + _PID])
        if cpu_ns is None:
            return 0  # it has died; the supervisor is about to notice
        worked_ns = max(0, cpu_ns - words[slot + _CPU_SEEN])
        words[slot + _CPU_SEEN] = cpu_ns
        return worked_ns

    def _change(self, slot: int, state: int, now_ns: int) -> None:
        words = self._words
        words[slot + _STATE] = state
        states = [words[other + _STATE] for other in self._slots]
        if state >= STARTING:  # from here on CPU times are compared
            for other, what in zip(self._slots, states, strict=True):
                if what >= STARTING:
                    words[other + _CPU_SEEN] = self._cpu_ns(words[other + _PID]) or 0
        is_idle = any(states) and max(states) < STARTING
        if is_idle and not words[_IDLE_SINCE]:
            words[_IDLE_SINCE] = now_ns
        elif not is_idle and words[_IDLE_SINCE]:
            words[_IDLE_NS] += now_ns - words[_IDLE_SINCE]
            words[_IDLE_SINCE] = 0


class MeterSlot:
    """A process's own place at its machine's meter."""

    def __init__(self, meter: Meter, place: int) -> None:
        self._meter = meter
        self._place = place
        self._taken_ns = 0

    @classmethod
    def from_environment(cls) -> "MeterSlot | None":
        """The place that the supervisor gave to this process, which loads from now on; None
        without a supervisor."""
        given = os.environ.get(METER_ENV)
        if not given:
            return None
        path, _, place = given.rpartition(":")
        slot = cls(Meter(Path(path)), int(place))
        slot._taken_ns = slot._meter.change(slot._place, LOADING)
        return slot

    def on_gpu(self) -> None:
        """This process computes on a GPU."""
        self._meter.use_gpu(self._place)

    def begin(self, *, weight: int = 0) -> None:
        """There is a request to work on. `weight`: for a process that does not work here itself."""
        if weight:
            self._meter.weigh(self._place, weight)
        self._meter.change(self._place, WORKING)

    def take(self, *, ends: bool) -> int:
        """The machine time worked since the last call; `ends`: there is no request any more."""
        meter, place = self._meter, self._place
        worked_ns = meter.change(place, IDLE) if ends else meter.working_ns(place)
        taken_ns, self._taken_ns = worked_ns - self._taken_ns, worked_ns
        return taken_ns

    def report(self, ns: int) -> None:
        """So much of what was taken has been told to whoever pays for it."""
        self._meter.report(self._place, ns)

    def lose(self, ns: int) -> None:
        """So much of what was taken brought nobody anything."""
        self._meter.lose(self._place, ns)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def process_cpu_ns(pid: int) -> int | None:
    """CPU time of any process of ours, all threads; None if it is gone.

    Linux's clock ids of processes are made of pids (clock_getcpuclockid(3)); reading one takes a
    quarter of a microsecond. Elsewhere nobody's is known, and equal shares are handed out.
    """
    if sys.platform != "linux":
        return None
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return None


_CPUS: Final = os.cpu_count() or 1
