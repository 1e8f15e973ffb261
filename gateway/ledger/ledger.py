"""The ledger as the pipeline sees it: `settle` before the last byte, everything else later.

Rows settled in one turn of the event loop go to the journal in one write; once `journalled` returns
they survive kill -9. From there they are queued, and one writer task inserts batches.
When the database is away rows wait: the newest in memory up to a bound, all of them in the journal,
which is read again when the database is back. Inserting is idempotent, so a replay of rows that
did arrive changes nothing.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from gateway.ledger import journal as journals
from gateway.ledger.journal import Journal, Segment
from gateway.ledger.records import Settlement
from gateway.ledger.report_query import ReportError
from gateway.ledger.repository import Repository, requests_meant
from gateway.ledger.retention import tidy
from gateway.ledger.worker_id import worker_id

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.settings import Settings

log = structlog.get_logger(__name__)

MAX_PENDING = 20_000
"""Settlements kept in memory; with more waiting, the rest stay in the journal only."""
TAKE_OVER_INTERVAL_S = 10.0
PRUNE_INTERVAL_S = 3_600.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
DISK_LOOK_S = 1.0
"""How soon a full disk is looked at again."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Settlement).decode


class Ledger:
    """One per gateway process. All methods belong to the event loop's thread.

    Args:
        settings: [database] and the state folder, where the journal lives.
        engine: of the ledger's database; not closed here.
        worker: names this process in its rows; the same as the budgets' owner.
        max_pending: bound of the rows in memory.
    """

    def __init__(
        self,
        settings: "Settings",
        engine: "AsyncEngine",
        *,
        worker: str | None = None,
        max_pending: int = MAX_PENDING,
        take_over_interval_s: float = TAKE_OVER_INTERVAL_S,
    ) -> None:
        self._database = settings.database
        self._engine = engine
        self._repository = Repository(engine, chained=settings.database.audit_chain)
        self.worker = worker or worker_id()
        self._folder = Path(settings.state_dir) / "journal"
        self._journal = Journal(self._folder)
        self._max_pending = max_pending
        self._take_over_interval_s = take_over_interval_s
        self._queue: deque[tuple[Settlement, Segment | None]] = deque()
        self._pending: dict[str, Settlement] = {}
        self._settled: list[tuple[Settlement, bytes]] = []
        """Not in the journal yet: rows of this turn of the event loop."""
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._accepted = 0
        """Settlements so far."""
        self._committed = -1
        """Of these, in their order; -1: not even what dead processes left at the start."""
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits until so many are committed."""
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._written = 0
        self._replayed = 0
        self._lost = 0
        self._kept_aside = 0
        self._write_errors = 0
        self._database_error: str | None = None

    async def start(self) -> None:
        """Start the writer; it first takes over what dead processes left in their journals."""
        self._task = asyncio.create_task(self._run(), name="ledger-writer")
        self._pruning = asyncio.create_task(
            self._prune(self._database.retention_days), name="ledger-retention"
        )

    @property
    def refusal(self) -> str | None:
        """Why no request can be served now; None: go ahead. Hot: asked for every request."""
        database, journal = self._database_error is not None, self._journal.last_error
        if database and journal is not None:  # what is answered would stand in memory only
            return f"Neither the ledger's database nor its journal ({journal}) takes any row."
        if self._database.on_ledger_outage == "serve":
            return None
        if database:
            return "The ledger's database does not answer, and no request is served without it."
        if journal is not None:
            return (
                f"The ledger's journal ({journal}) takes no row; no request is served without it."
            )
        return None

    def settle(self, settlement: Settlement) -> None:
        """Book a finished request; `journalled` waits until the row survives kill -9.

        Nothing that happens to the caller afterwards, a cancellation say, can lose the row.
        """
        request = settlement.request
        if not request.worker:
            request = msgspec.structs.replace(request, worker=self.worker)
            settlement = msgspec.structs.replace(settlement, request=request)
        try:
            payload = _encode(settlement)
        except UnicodeEncodeError:  # a lone surrogate in some header must not lose the row
            payload = _encode(_replace_surrogates(msgspec.to_builtins(settlement)))
            settlement = _decode(payload)
        self._pending[request.request_id] = settlement
        if not self._settled:
            asyncio.get_running_loop().call_soon(self._write_journal)
        self._settled.append((settlement, payload))
        self._accepted += 1

    async def journalled(self, *, alone: bool = False) -> None:
        """Wait until everything settled so far is in the journal: before a client's last byte.

        Args:
            alone: nobody else will settle in this turn of the event loop, so nothing is waited for.
        """
        if alone:
            self._write_journal()
        elif self._settled:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _write_journal(self) -> None:
        """One write for all rows of a turn; then they wait for SQL."""
        if not self._settled:
            return
        settled, self._settled = self._settled, []
        waiters, self._waiters = self._waiters, []
        segment = self._journal.append(*(payload for _, payload in settled))
        slept = not self._queue
        for settlement, _ in settled:
            if len(self._queue) < self._max_pending:
                self._queue.append((settlement, segment))
                continue
            del self._pending[settlement.request.request_id]
            if segment is not None:
                segment.spilled = True
            else:
                self._lost += 1
                log.error("settlement_lost", request_id=settlement.request.request_id)
        if slept or len(self._queue) >= self._database.batch_size:
            self._wake.set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything settled so far is committed; False if it took longer."""
        if self._committed == self._accepted:
            return True
        self._wake.set()
        done = asyncio.get_running_loop().create_future()
        self._flushes.append((self._accepted, done))
        try:
            await asyncio.wait_for(done, timeout_s)
        except TimeoutError:
            return False
        return True

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Write what is left, within `timeout_s`; what the database refuses stays journalled."""
        self._write_journal()
        self._closing = True
        self._wake.set()
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.wait({self._pruning})
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=timeout_s)
            for task in late:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self._task = None
        self._journal.close()

    async def find(self, named: str) -> Settlement | None:
        """A request with its charges, also when it is not committed yet.

        Args:
            named: its id, or the `id` of the answer that it got.

        Raises:
            SQLAlchemyError: it is in no journal and the database does not answer.
        """
        meant = requests_meant(named)
        waiting = next((self._pending[one] for one in meant if one in self._pending), None)
        if waiting is not None:
            return waiting
        try:
            found = await self._repository.find(named)
        except (SQLAlchemyError, OSError):
            found = await self._find_in_journals(meant)
            if found is None:
                raise
            return found
        return found or await self._find_in_journals(meant)

    async def _find_in_journals(self, request_ids: Sequence[str]) -> Settlement | None:
        for request_id in request_ids:
            if found := await asyncio.to_thread(self._search_journals, request_id):
                return found
        return None

    async def missing(self, request_ids: Collection[str]) -> list[str]:
        """Those that are neither booked here nor in SQL; other processes' journals are not read.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        asked = [name for name in request_ids if name not in self._pending]
        known = await self._repository.known(asked)
        return [name for name in asked if name not in known]

    async def knows(self, request_id: str) -> bool:
        """Whether a request of that id is booked here or in SQL; unsure counts as yes.

        Cheaper than `find`: it does not look into other processes' journals.
        """
        if request_id in self._pending:
            return True
        try:
            return await self._repository.find(request_id) is not None
        except (SQLAlchemyError, OSError):
            return True

    def _search_journals(self, request_id: str) -> Settlement | None:
        """Look through all processes' segments: another worker's rows, and spilled ones."""
        needle = _encode(request_id)
        for path in self._folder.glob(f"*{journals.SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if needle not in path.read_bytes():
                    continue
                for payload in journals.read(path):
                    if needle in payload:
                        settlement = _decode(payload)
                        if settlement.request.request_id == request_id:
                            return settlement
        return None

    def state(self) -> dict[str, Any]:
        """For /health and the metrics: counts since start, and the last errors."""
        return {
            "ok": self._database_error is None and self._journal.last_error is None,
            "pending": len(self._queue),
            "spilled_segments": len(self._journal.spilled()),
            "journal_bytes": self._journal.size_bytes,
            "written_total": self._written,
            "replayed_total": self._replayed,
            "lost_total": self._lost,
            "kept_aside_total": self._kept_aside,
            "write_errors_total": self._write_errors,
            "journal_errors_total": self._journal.errors,
            "database_error": self._database_error,
            "journal_error": self._journal.last_error,
        }

    def waiting_bytes(self) -> int:
        """What waits in the journals of all processes of this state folder."""
        found = 0
        for path in self._folder.glob(f"*{journals.SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                found += path.stat().st_size
        return found

    # The writer task

    async def _run(self) -> None:
        """Write batches until closed; with the database away, try again ever more rarely."""
        loop = asyncio.get_running_loop()
        next_take_over = loop.time()
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                if loop.time() >= next_take_over:
                    await self.take_over()
                    next_take_over = loop.time() + self._take_over_interval_s
                await self._write_queue()
                taken = self._accepted - len(self._queue) - len(self._settled)
                await self._replay_spilled()
                self._note_committed(taken)
            except (SQLAlchemyError, OSError) as error:
                self._note(error)
                if self._closing:
                    return
                await self._journal_rest()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            self._database_error, backoff_s = None, FIRST_BACKOFF_S
            has_room = self._journal.try_again()
            if self._closing and not self._queue:
                return
            patience_s = next_take_over - loop.time()
            await self._next_batch(patience_s if has_room else min(patience_s, DISK_LOOK_S))

    async def _journal_rest(self) -> None:
        """Journal the rows that only memory has, should the disk have room again."""
        for place in range(len(self._queue)):
            settlement, segment = self._queue[place]
            if segment is not None:
                continue
            if not self._journal.try_again():
                return
            self._queue[place] = settlement, self._journal.append(_encode(settlement))
            await asyncio.sleep(0)  # others do not wait for all of it

    def _note_committed(self, count: int) -> None:
        """The first so many settlements are in SQL."""
        self._committed = count
        waiting, self._flushes = self._flushes, []
        for until, done in waiting:
            if until > count:
                self._flushes.append((until, done))
            elif not done.done():
                done.set_result(None)

    async def _next_batch(self, patience_s: float) -> None:
        """Sleep until the first row, then as long as its batch may grow."""
        if not self._queue:
            self._wake.clear()
            if self._closing:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(patience_s, 0.001))
        if not self._closing and 0 < len(self._queue) < self._database.batch_size:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._database.flush_interval_s)

    async def _write_queue(self) -> None:
        waiting = len(self._queue)
        for start in range(0, waiting, self._database.batch_size):
            size = min(waiting - start, self._database.batch_size)
            batch = list(islice(self._queue, size))
            self._written += await self._write([settlement for settlement, _ in batch])
            by_segment: dict[Segment, int] = {}
            for settlement, segment in batch:
                self._queue.popleft()
                self._pending.pop(settlement.request.request_id, None)
                if segment is not None:
                    by_segment[segment] = by_segment.get(segment, 0) + 1
            for segment, rows in by_segment.items():
                await asyncio.to_thread(self._journal.committed, segment, rows)

    async def _write(self, settlements: Sequence[Settlement]) -> int:
        """Insert a batch; a row that SQL can never take is kept aside, the others go in."""
        try:
            await self._repository.write(settlements)
            return len(settlements)
        except (SQLAlchemyError, OverflowError, ValueError) as error:
            if not _is_the_rows_fault(error):
                raise
            if len(settlements) == 1:
                self._keep_aside(settlements[0], error)
                return 0
        half = len(settlements) // 2
        return await self._write(settlements[:half]) + await self._write(settlements[half:])

    def _keep_aside(self, settlement: Settlement, error: Exception) -> None:
        self._kept_aside += 1
        line = _encode(settlement)
        journals.keep_aside(self._folder / "refused", line, reason=str(error)[:500])

    async def _replay_spilled(self) -> None:
        for segment in self._journal.spilled():
            segment.closed = True
            self._replayed += await self._replay(segment.path)
            await asyncio.to_thread(self._journal.replayed, segment)

    async def take_over(self) -> None:
        """Write what dead processes left in their journals. Raises SQLAlchemyError, OSError."""
        for orphan in journals.take_over(self._folder):
            try:
                rows = await self._replay(orphan.path)
            except BaseException:
                orphan.release()
                raise
            orphan.remove()
            self._replayed += rows
            log.info("journal_replayed", path=str(orphan.path), rows=rows)

    async def _replay(self, path: Path) -> int:
        rows = 0
        batch: list[Settlement] = []
        for payload in journals.read(path):
            try:
                batch.append(_decode(payload))
            except msgspec.MsgspecError as error:
                journals.keep_aside(path, payload, reason=str(error))
                self._kept_aside += 1
            if len(batch) >= self._database.batch_size:
                rows += await self._write(batch)
                batch = []
        return rows + (await self._write(batch) if batch else 0)

    async def _prune(self, retention_days: int | None) -> None:
        """Remove old rows now and every hour, and make room for new months."""
        while True:
            try:
                gone = await tidy(self._engine, retention_days=retention_days, now=time.time())
                if gone:
                    log.info("requests_pruned", requests=gone, retention_days=retention_days)
            except (SQLAlchemyError, OSError, ReportError) as error:
                log.warning("pruning_failed", error=str(error)[:500])
            await asyncio.sleep(PRUNE_INTERVAL_S)

    def _note(self, error: Exception) -> None:
        self._write_errors += 1
        if self._database_error is None:
            log.error("ledger_write_failed", error=str(error)[:500], pending=len(self._queue))
        self._database_error = f"{type(error).__name__}: {str(error)[:300]}"


def _is_the_rows_fault(error: Exception) -> bool:
    """Whether trying the same rows again can never help."""
    if isinstance(error, OperationalError | InterfaceError):
        return False
    if isinstance(error, DBAPIError):
        names = _names(error)
        never = "DataError" in names or "ProgramLimitExceeded" in names
        return never and not error.connection_invalidated
    return isinstance(error, OverflowError | ValueError)


def _names(error: DBAPIError) -> str:
    chain: list[Callable[..., object]] = [type(error), type(error.orig), *type(error.orig).__mro__]
    cause = error.orig.__cause__ if error.orig else None
    return " ".join(str(kind) for kind in (*chain, *type(cause).__mro__))


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_surrogates(item) for item in value]
    return value
