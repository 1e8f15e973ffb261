"""After a gateway process died: its requests under way are booked, its slices return.

What it answered stands in its journal, which the ledger takes over. What it was still answering
then stands in its reservation log: each such request is booked at what its backend says it used,
else in full. Then nothing is unknown any more, and its leases end at once; on another host, which
cannot read its files, they run out after LEASE_S, and here too should this take longer.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from backends.contract import Usage
from backends.errors import BackendError
from gateway.ledger import reservation_log
from gateway.ledger.journal import SUFFIX as JOURNAL_SUFFIX
from gateway.ledger.pricing import price_usage
from gateway.ledger.records import ChargeRecord, RequestRecord, Settlement
from gateway.ledger.reservation_log import Held, Orphan
from gateway.parts import Parts

log = structlog.get_logger(__name__)

LOOK_S = 1.0
_USAGE_TIMEOUT_S = 1.0
_USAGES_TIMEOUT_S = 10.0
_ASKED_AT_ONCE = 32
_JOURNAL_TIMEOUT_S = 5.0
"""How long to wait for the dead process's journal before looking again."""


class Recovery:
    """One per gateway process; whichever locks a dead one's file first does the work."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._state = Path(parts.settings.state_dir)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look now and then on."""
        self._task = asyncio.create_task(self._run(), name="recovery")

    async def aclose(self) -> None:
        """Stop looking; what is half done, somebody does again."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            self._parts.reservations.tidy()
            try:
                await self.recover()
            except (SQLAlchemyError, OSError) as error:
                log.warning("recovery_postponed", error=str(error)[:300])
            await asyncio.sleep(LOOK_S)

    async def recover(self) -> int:
        """Settle what dead processes left; how many there were."""
        count = 0
        for orphan in reservation_log.take_over(self._state / "reservations"):
            try:
                await self._settle(orphan)
            except BaseException:
                orphan.release()
                raise
            orphan.remove()
            count += 1
        return count

    async def _settle(self, orphan: Orphan) -> None:
        """What it answered first: then little is left to ask about, and nothing of that twice."""
        parts = self._parts
        await self._wait_for_journal(orphan.pid)
        held = {one.request_id: one for one in orphan.open_reservations()}
        left = [held[name] for name in await parts.ledger.missing(held)]
        usages = await self._usages(left)
        for one in left:
            parts.ledger.settle(self._settlement(one, orphan.owner, usages))
        if not await parts.ledger.flush():
            raise OSError("the ledger does not take the rows yet")
        ended = await parts.budgets.end_leases(orphan.owner)
        log.warning("gateway_recovered", owner=orphan.owner, requests=len(left), leases=ended)

    async def _wait_for_journal(self, pid: str) -> None:
        """Until its rows are in the database. Raises OSError: they are not yet."""
        folder, pattern = self._state / "journal", f"{pid}-*{JOURNAL_SUFFIX}"
        deadline = time.monotonic() + _JOURNAL_TIMEOUT_S
        while any(folder.glob(pattern)):
            await self._parts.ledger.take_over()
            if time.monotonic() > deadline:
                raise OSError(f"the journal {pattern} is still being replayed")
            await asyncio.sleep(0.05)

    def _settlement(
        self, held: Held, owner: str, usages: Mapping[tuple[str, str], Usage]
    ) -> Settlement:
        charges: list[ChargeRecord] = []
        for name in held.backends:
            usage = usages.get((held.request_id, name))
            if usage is not None:
                charges.append(self._charge(held, name, usage, len(charges)))
        if not charges and held.backends:
            charges.append(self._in_full(held))
        record = RequestRecord(
            request_id=held.request_id,
            endpoint=held.endpoint,
            model=held.model,
            team=held.team,
            key=held.key,
            user=held.user,
            tags=held.tags,
            started_at=held.at,
            duration_ms=max(self._parts.clock() - held.at, 0.0) * 1e3,
            stream=held.stream,
            outcome="error",
            status=500,
            error_code="gateway_died",
            backend=charges[0].backend if charges else None,
            cost_nano_usd=sum(charge.cost_nano_usd for charge in charges),
            worker=owner,
        )
        beyond = record.cost_nano_usd - held.nano_usd
        if beyond > 0:
            self._parts.budgets.overruns.note(held.key, beyond, held.at)
        return Settlement(request=record, charges=tuple(charges), heeded_us=held.heeded_us)

    async def _usages(self, left: Sequence[Held]) -> dict[tuple[str, str], Usage]:
        """By request and backend, of those that say it in time: leases must not wait for it."""
        found: dict[tuple[str, str], Usage] = {}
        at_once = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(held: Held, name: str) -> None:
            async with at_once:
                usage = await self._usage_of(name, held.request_id)
            if usage is not None:
                found[held.request_id, name] = usage

        asked = [asyncio.create_task(ask(held, name)) for held in left for name in held.backends]
        if asked:
            _, late = await asyncio.wait(asked, timeout=_USAGES_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return found

    async def _usage_of(self, name: str, request_id: str) -> Usage | None:
        backend, settings = self._parts.backends.get(name), self._parts.backend_settings.get(name)
        if backend is None or settings is None or settings.price is not None:
            return None  # gone, or somebody else's server: it knows no such question
        try:
            async with asyncio.timeout(_USAGE_TIMEOUT_S):
                return await backend.usage_of(request_id)
        except (BackendError, TimeoutError):
            return None

    def _charge(self, held: Held, name: str, usage: Usage, seq: int) -> ChargeRecord:
        return price_usage(
            self._parts.settings,
            self._parts.backend_settings[name],
            usage,
            elapsed_s=0.0,
            in_flight=1,
            at=self._parts.clock(),
            request_id=held.request_id,
            seq=seq,
        )

    def _in_full(self, held: Held) -> ChargeRecord:
        """All that was held: nobody knows what the request used, and it may have used that."""
        return ChargeRecord(
            request_id=held.request_id,
            seq=0,
            kind="answer",
            backend=held.backends[0],
            at=self._parts.clock(),
            unit_prices={"booked": "reservation"},
            cost_nano_usd=held.nano_usd,
        )
