"""Overrides in one gateway process: looked for in every store each second, merged, passed on.

A store that was away gets what it missed from whichever process sees it first, so what was set or
lifted while the database was down is in its audit log when it is back.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from msgspec.structs import replace

from gateway.errors import Unavailable
from gateway.overrides.model import NOTHING, Effect, Override, effect_of
from gateway.overrides.stores import AWAY, OverrideStore, SqlOverrides

log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
"""Between two looks: with one write under way, the last process follows within two seconds."""
PATIENCE_S = 1.5
"""How long a writer, or a start, waits for the slower store."""
MOST_UNRECORDED = 100
"""Acts on one slot that are carried to a database that is away; the newest."""


class Overrides:
    """One per gateway process.

    Args:
        clock: unix seconds, alike in all processes.
    """

    def __init__(self, stores: Sequence[OverrideStore], clock: Callable[[], float]) -> None:
        self._stores = stores
        self._clock = clock
        self._known: dict[str, Override] = {}
        self._recorded: dict[str, int] = {}
        self._effect = NOTHING
        self._away: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take over what is in force, as far as the stores answer, and keep looking."""
        looks = [asyncio.create_task(self._watch(store)) for store in self._stores]
        self._tasks = looks
        first = [asyncio.create_task(self.look(store)) for store in self._stores]
        await asyncio.wait(first, timeout=PATIENCE_S)

    async def aclose(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def effect(self) -> Effect:
        """What is in force now; the same object until that changes."""
        effect = self._effect
        if effect is not NOTHING and self._clock() >= effect.until:
            effect = self._effect = effect_of(self._known.values(), self._clock())
        return effect

    def current(self) -> list[Override]:
        """All in force, in the order in which they were set."""
        now = self._clock()
        found = [one for one in self._known.values() if one.holds(now)]
        return sorted(found, key=lambda one: one.version)

    def problems(self) -> list[str]:
        """Stores that do not answer, for /health."""
        return [f"overrides: {name}: {error}" for name, error in self._away.items()]

    def next_version(self, slot: str) -> int:
        """Of a write that is made now."""
        known = self._known.get(slot)
        now = round(self._clock() * 1e6)
        return now if known is None else max(now, known.version + 1)

    async def put(self, override: Override) -> list[str]:
        """Set or lift a slot, here at once and everywhere within two seconds.

        Returns:
            The stores that have it; the others get it when they answer again.

        Raises:
            Unavailable: no store took it; it is in force nowhere.
        """
        override = replace(override, replaces=self._unrecorded(override.slot))
        writes = {
            asyncio.create_task(self._write(store, override)): store.name for store in self._stores
        }
        # a store that hangs is waited for by nobody: its write may still arrive, or a look repairs
        await asyncio.wait(writes, timeout=PATIENCE_S)
        took = [name for task, name in writes.items() if task.done() and task.result()]
        if not took:
            raise Unavailable("Neither the database nor Redis took it; nothing was changed.")
        self._merge([override])
        return took

    async def look(self, store: OverrideStore) -> None:
        """Take over what is newer there, and give it what is newer here."""
        try:
            found = await store.read()
            self._merge(found)
            there = {one.slot: one.version for one in found}
            missing = [o for o in self._known.values() if o.version > there.get(o.slot, -1)]
            if missing:
                await store.write(missing)
            self._note_recorded(store, [*found, *missing])
        except AWAY as error:
            self._note(store, error)
        else:
            self._away.pop(store.name, None)

    async def _watch(self, store: OverrideStore) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.look(store)

    async def _write(self, store: OverrideStore, override: Override) -> bool:
        try:
            await store.write([override])
        except AWAY as error:
            self._note(store, error)
            return False
        self._note_recorded(store, [override])
        return True

    def _unrecorded(self, slot: str) -> tuple[Override, ...]:
        """What the next version of a slot has to tell the database beside itself."""
        known = self._known.get(slot)
        if known is None or known.version <= self._recorded.get(slot, -1):
            return ()
        return (*known.replaces, replace(known, replaces=()))[-MOST_UNRECORDED:]

    def _note_recorded(self, store: OverrideStore, there: Sequence[Override]) -> None:
        if store.name == SqlOverrides.name:
            for one in there:
                self._recorded[one.slot] = max(self._recorded.get(one.slot, -1), one.version)

    def _merge(self, found: Sequence[Override]) -> None:
        newer = [
            one
            for one in found
            if one.slot not in self._known or self._known[one.slot].version < one.version
        ]
        if not newer:
            return
        self._known |= {one.slot: one for one in newer}
        self._effect = effect_of(self._known.values(), self._clock())
        for one in newer:
            log.info("override_taken_over", slot=one.slot, lifted=one.value is None)

    def _note(self, store: OverrideStore, error: BaseException) -> None:
        if store.name not in self._away:
            log.warning("override_store_away", store=store.name, error=str(error)[:200])
        self._away[store.name] = str(error)[:200] or type(error).__name__
