"""Answers batches, line by line through the pipeline, as their keys' owners.

Every gateway process looks for batches and leases one at a time. Answers are written in steps that
also count them, so after a crash whoever takes over knows which lines are done; those that were
under way are asked again.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.batches.files import FileStore, append
from gateway.batches.inner import Answered, ask
from gateway.batches.lines import Line, answered, custom_ids, left_out, read_lines
from gateway.batches.store import Batch, BatchStore, LeaseLost
from gateway.ledger.keys import Caller
from gateway.pipeline import Pipeline

log = structlog.get_logger(__name__)

LOOK_S = 5.0
_STEP_S = 0.5
"""Between two writings of answers."""
_LONGEST_PAUSE_S = 60.0
_OWNER_S = 30.0
"""How long the key of a batch is taken to be as it was."""


class BatchRunner:
    """One per gateway process, with the stores that the paths use, too."""

    def __init__(self, pipeline: Pipeline) -> None:
        parts = pipeline.parts
        chosen = parts.settings.batches
        self._pipeline = pipeline
        self._concurrency = chosen.concurrency
        self._clock = parts.clock
        keep_s = chosen.keep_days * 86_400
        self.files = FileStore(parts.engine, keep_s=keep_s, clock=parts.clock, new_id=parts.new_id)
        self.store = BatchStore(parts.engine, keep_s=keep_s, clock=parts.clock, new_id=parts.new_id)
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look now and then on."""
        self._task = asyncio.create_task(self._look(), name="batches")

    async def aclose(self) -> None:
        """Stop; what is not answered yet, whoever looks next answers."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    async def _look(self) -> None:
        while True:
            try:
                await self.files.forget_expired()
                while (batch := await self.store.claim()) is not None:
                    try:
                        await self._run(batch)
                    except asyncio.CancelledError:
                        await self.store.release(batch)
                        raise
            except (SQLAlchemyError, OSError) as error:
                log.warning("batches_postponed", error=str(error)[:300])
            except LeaseLost as error:
                log.warning("batch_taken_over", batch=str(error))
            except Exception:
                log.exception("batch_crashed")  # its lease runs out; then it is tried again
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_S)
            self._woken.clear()

    async def _run(self, batch: Batch) -> None:
        data = b"".join([part async for part in self.files.content(batch.body["input_file_id"])])
        lines, errors = await asyncio.to_thread(read_lines, data, batch.body["endpoint"])
        await self._begin(batch, len(lines), errors)
        if batch.status != "failed":
            work = _Work(self._pipeline, self.files, self.store, batch, self._clock)
            await work.finish(lines, self._concurrency)

    async def _begin(self, batch: Batch, total: int, errors: list[dict[str, Any]]) -> None:
        """Begin, or go on with, a batch whose input was read; with errors in it, it has failed."""
        async with self.store.holding(batch):
            if batch.status == "cancelling":
                batch.body["request_counts"]["total"] = total
            elif errors:
                batch.body["errors"] = {"object": "list", "data": errors}
                batch.turn("failed", self._clock())
            elif batch.status == "validating":
                batch.body["request_counts"]["total"] = total
                batch.turn("in_progress", self._clock())


class _Work:
    """One batch being answered."""

    def __init__(
        self,
        pipeline: Pipeline,
        files: FileStore,
        store: BatchStore,
        batch: Batch,
        clock: Callable[[], float],
    ) -> None:
        self._pipeline = pipeline
        self._files = files
        self._store = store
        self._batch = batch
        self._clock = clock
        self._answers: list[bytes] = []
        self._failures: list[bytes] = []
        self._owner: tuple[float, Caller | None] | None = None

    @property
    def _over(self) -> bool:
        """No further line is begun."""
        return self._batch.status == "cancelling" or self._expired or self._pipeline.draining

    @property
    def _expired(self) -> bool:
        return bool(self._clock() >= self._batch.body["expires_at"])

    async def finish(self, lines: list[Line], concurrency: int) -> None:
        """Answer what is not answered yet, and say how it ended."""
        done = await self._done()
        left = [line for line in lines if line.custom_id not in done]
        todo = iter(left)
        asking = [asyncio.create_task(self._answer(todo)) for _ in range(concurrency)]
        try:
            going: set[asyncio.Task[None]] = set(asking)
            while going:
                finished, going = await asyncio.wait(going, timeout=_STEP_S)
                for task in finished:
                    task.result()
                await self._write_sometime()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await self._write_sometime()
        if self._pipeline.draining and not self._expired and self._batch.status != "cancelling":
            await self._store.release(self._batch)
            return
        if self._expired:
            for line in todo:
                words = "The batch's window ended before this request was made."
                self._failures.append(left_out(line.custom_id, "batch_expired", words))
        await self._end()

    async def _done(self) -> set[str]:
        done: set[str] = set()
        for name in ("output_file_id", "error_file_id"):
            file_id = self._batch.body[name]
            if file_id is not None:
                written = b"".join([part async for part in self._files.content(file_id)])
                done.update(custom_ids(written))
        return done

    async def _answer(self, todo: Iterator[Line]) -> None:
        """Take lines until there are none."""
        while not self._over and (line := next(todo, None)) is not None:
            body = msgspec.json.encode(line.body)
            while True:
                found = await ask(self._pipeline, line.url, body, await self._caller())
                if found.retry_after_s is None or self._over:
                    break
                await asyncio.sleep(min(found.retry_after_s, _LONGEST_PAUSE_S))
            if found.retry_after_s is not None and not self._expired:
                continue  # it stopped here, unanswered
            self._note(line, found)

    def _note(self, line: Line, found: Answered) -> None:
        written = answered(line.custom_id, found.status, found.request_id, msgspec.Raw(found.body))
        (self._answers if found.status == 200 else self._failures).append(written)

    async def _caller(self) -> Caller | None:
        """The key's owner as he is now; None: the key is gone."""
        now = time.monotonic()
        if self._owner is None or now - self._owner[0] > _OWNER_S:
            found = await self._pipeline.parts.keys.owner(self._batch.key)
            self._owner = (now, found)
        return self._owner[1]

    async def _write(self) -> None:
        """Append what was answered, count it, keep the lease, learn of a cancellation.

        Raises:
            SQLAlchemyError, OSError: nothing is written; the next writing has it, too.
        """
        answers, failures = list(self._answers), list(self._failures)
        batch = self._batch
        async with self._store.holding(batch) as connection:
            for name, what, lines in (
                ("output", "completed", answers),
                ("error", "failed", failures),
            ):
                if not lines:
                    continue
                if batch.body[f"{name}_file_id"] is None:
                    batch.body[f"{name}_file_id"] = await self._files.create(
                        connection,
                        team=batch.team,
                        key=batch.key,
                        user=batch.user,
                        purpose="batch_output",
                        filename=f"{batch.id}_{name}.jsonl",
                    )
                await append(connection, batch.body[f"{name}_file_id"], b"".join(lines))
                batch.body["request_counts"][what] += len(lines)
        del self._answers[: len(answers)], self._failures[: len(failures)]

    async def _write_sometime(self) -> bool:
        """The same; False where the database is away."""
        try:
            await self._write()
        except (SQLAlchemyError, OSError) as error:
            log.warning("batch_not_written", batch=self._batch.id, error=str(error)[:200])
            return False
        return True

    async def _end(self) -> None:
        while not await self._write_sometime():  # noqa: ASYNC110 (who comes back tells nobody)
            await asyncio.sleep(_STEP_S)
        batch, now = self._batch, self._clock()
        async with self._store.holding(batch):
            batch.body["finalizing_at"] = batch.body["finalizing_at"] or int(now)
            counts: dict[str, Any] = batch.body["request_counts"]
            whole = counts["completed"] + counts["failed"] >= counts["total"]
            if batch.status == "cancelling" and not whole:
                batch.turn("cancelled", now)
            elif self._expired:
                batch.turn("expired", now)
            else:
                batch.turn("completed", now)
        log.info("batch_ended", batch=batch.id, status=batch.status, **counts)
