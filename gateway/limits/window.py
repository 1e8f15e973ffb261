"""A minute that slides, and counts of requests under way: the rules, and both in memory.

Time is cut into slots of two seconds; a slot counts until all of it is more than a minute ago, so
whatever sixty seconds one looks at, no more than the limit was let in. `redis_store.py` does the
same in Redis, for all processes together.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from msgspec import Struct

SLOT_MS = 2_000
SLOTS = 30
"""In a minute; one more counts, because the oldest is cut by the minute's edge."""
LARGER_THAN_LIMIT = -1

Kind = Literal["requests", "tokens", "usd", "concurrent"]


class Demand(Struct, frozen=True):
    """What a request wants of one limit."""

    subject: str
    """key:ID, user:NAME or team:NAME."""
    kind: Kind
    limit: int
    amount: int


Change = tuple[Demand, int]
"""What to add, mostly negative, to what a demand was counted as."""


class Level(Struct, frozen=True):
    """How one limit stands."""

    used: int
    """With the demand, if it was let in."""
    reset_ms: int = 0
    """Until all of it is free again."""


class Verdict(Struct, frozen=True):
    """Whether all demands fit; if one does not, none was counted."""

    levels: tuple[Level, ...]
    """In the order of the demands."""
    slot: int
    """In which they were counted."""
    refused: int | None = None
    """The first demand that did not fit."""
    retry_ms: int = 0
    """When it would; LARGER_THAN_LIMIT: never."""


class LimitStore(Protocol):
    """Where limits are counted. Raises StoreUnavailable when it cannot be reached."""

    async def admit(self, demands: Sequence[Demand]) -> Verdict:
        """Count all demands, or none."""
        ...

    def correct(self, changes: Sequence[Change], slot: int) -> None:
        """Add to what was counted in `slot`; lost if the store is away. Never waits."""
        ...

    async def beat(self) -> int:
        """Say that this process lives; how many do."""
        ...


class MemoryLimits:
    """Limits of one process.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: dict[tuple[str, Kind], dict[int, int]] = {}

    async def admit(self, demands: Sequence[Demand]) -> Verdict:
        """Never waits."""
        return self.count(demands)

    def count(self, demands: Sequence[Demand]) -> Verdict:
        """The same."""
        now_ms = int(self._clock() * 1000)
        slot = now_ms // SLOT_MS
        levels: list[Level] = []
        refused, retry_ms = None, 0
        for index, demand in enumerate(demands):
            slots = self._current(demand, slot)
            used = sum(slots.values())
            if used + demand.amount > demand.limit and refused is None:
                refused, retry_ms = index, _retry_ms(slots, demand, used, now_ms)
            levels.append(Level(max(used, 0), _leaves_ms(max(slots, default=None), now_ms)))
        if refused is not None:
            return Verdict(tuple(levels), slot, refused, retry_ms)
        for index, demand in enumerate(demands):
            slots = self._slots[demand.subject, demand.kind]
            at = 0 if demand.kind == "concurrent" else slot
            slots[at] = slots.get(at, 0) + demand.amount
            levels[index] = Level(levels[index].used + demand.amount, _leaves_ms(slot, now_ms))
        return Verdict(tuple(levels), slot)

    def correct(self, changes: Sequence[Change], slot: int) -> None:
        for demand, more in changes:
            slots = self._slots.setdefault((demand.subject, demand.kind), {})
            at = 0 if demand.kind == "concurrent" else slot
            slots[at] = slots.get(at, 0) + more

    async def beat(self) -> int:
        """Forget what nobody asked for lately."""
        oldest = int(self._clock() * 1000) // SLOT_MS - SLOTS
        for key, slots in list(self._slots.items()):
            concurrent = key[1] == "concurrent"
            if not slots.get(0) if concurrent else max(slots, default=0) < oldest:
                del self._slots[key]
        return 1

    def _current(self, demand: Demand, slot: int) -> dict[int, int]:
        slots = self._slots.setdefault((demand.subject, demand.kind), {})
        if demand.kind != "concurrent":
            for old in [at for at in slots if at < slot - SLOTS]:
                del slots[old]
        return slots


def _retry_ms(slots: dict[int, int], demand: Demand, used: int, now_ms: int) -> int:
    if demand.amount > demand.limit:
        return LARGER_THAN_LIMIT
    if demand.kind == "concurrent":
        return 1000
    for at in sorted(slots):
        used -= slots[at]
        if used + demand.amount <= demand.limit:
            return _leaves_ms(at, now_ms)
    return SLOT_MS * SLOTS


def _leaves_ms(slot: int | None, now_ms: int) -> int:
    return 0 if slot is None else max((slot + SLOTS + 1) * SLOT_MS - now_ms, 0)
