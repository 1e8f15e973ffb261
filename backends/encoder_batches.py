"""Texts of many requests encoded together: one thread, batches of whatever is waiting."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.engine.accounting import EngineClock, Stopwatch
from backends.errors import BackendResponseError, BackendUnavailableError
from backends.meter import MeterSlot
from backends.shares import share

Vectors = NDArray[np.float32]

_BATCH_TEXTS: Final = 32

log = logging.getLogger(__name__)


class Encoder(Protocol):
    """What turns texts into vectors; called from one thread only."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, after truncation."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[len(texts), dimensions], unit length."""
        ...


class Job:
    """The texts of one request and what became of them."""

    def __init__(self, texts: Sequence[str], done: "asyncio.Future[Job]") -> None:
        self.texts = texts
        self.done = done
        self.taken = 0
        self.tokens = 0
        self.machine_ns = 0
        """Its share of the batches' time, by tokens."""
        self.vectors: list[Vectors] = []


class Batcher:
    """Owns the encoder's thread. Waiting requests share each batch, so that one with thousands
    of texts does not hold up one with a single text.

    Attributes:
        failure: why the thread ended; None while it lives.
    """

    def __init__(
        self,
        encoder: Encoder,
        now_ns: Callable[[], int] = time.perf_counter_ns,
        meter: MeterSlot | None = None,
    ) -> None:
        """`meter` shares the machine's time with its other processes."""
        self.failure: str | None = None
        self._encoder = encoder
        self._watch = Stopwatch(now_ns, meter=meter)
        self._jobs: deque[Job] = deque()
        self._something = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Requests not yet wholly encoded."""
        return len(self._jobs)

    def clock(self) -> EngineClock:
        """Busy and idle time since it was made."""
        return self._watch.read()

    def start(self) -> None:
        """Start the thread; answers go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def encode(self, texts: Sequence[str]) -> Job:
        """Vectors, tokens and machine time of `texts`; cancelling it gives up its place.

        Raises:
            BackendUnavailableError: the thread has ended.
            BackendResponseError: the model failed on these texts.
        """
        assert self._loop is not None, "start() first"
        job = Job(texts, self._loop.create_future())
        with self._something:
            if self._stopping or self.failure is not None:
                raise BackendUnavailableError(f"The encoder has stopped: {self.failure or 'exit'}")
            self._jobs.append(job)
            self._something.notify()
        return await job.done

    async def aclose(self) -> None:
        """Stop after the present batch."""
        with self._something:
            self._stopping = True
            self._something.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            while True:
                with self._something:
                    self._something.wait_for(lambda: bool(self._jobs) or self._stopping)
                    if self._stopping:
                        return
                    parts = self._next_batch()
                if parts:
                    self._watch.work_begins()
                    self._encode(parts)
        except BaseException as error:
            log.critical("encoder_died", exc_info=error)
            self.failure = f"{type(error).__name__}: {error}"
            with self._something:
                left, self._jobs = list(self._jobs), deque()
            for job in left:
                self._settle(job, BackendUnavailableError(f"The encoder died: {self.failure}"))

    def _next_batch(self) -> list[tuple[Job, Sequence[str]]]:
        """Up to 32 texts, an equal number of each waiting request."""
        for job in [job for job in self._jobs if job.done.cancelled()]:
            self._jobs.remove(job)
            self._watch.lose(job.machine_ns)
        room, parts = _BATCH_TEXTS, []
        for place, job in enumerate(list(self._jobs)):
            if room == 0:
                break
            share = max(1, room // (len(self._jobs) - place))
            texts = job.texts[job.taken : job.taken + share]
            parts.append((job, texts))
            job.taken += len(texts)
            room -= len(texts)
        return parts

    def _encode(self, parts: Sequence[tuple[Job, Sequence[str]]]) -> None:
        texts = [text for _, own in parts for text in own]
        try:
            counts = self._encoder.count(texts)
            vectors = self._encoder.encode(texts)
        except Exception as error:
            log.error("encoding_failed", exc_info=error)
            failed = BackendResponseError(f"Encoding failed: {error}", status=500)
            for job, _ in parts:
                self._finish(job, failed)
            self._watch.take(ends=not self._jobs)
            return
        start, tokens = 0, []
        for _, own in parts:
            tokens.append(max(1, sum(counts[start : start + len(own)])))
            start += len(own)
        ended = sum(job.taken == len(job.texts) for job, _ in parts)
        spent_ns, _ = self._watch.take(ends=len(self._jobs) == ended)
        start = 0
        for (job, own), count, ns in zip(parts, tokens, share(spent_ns, tokens), strict=True):
            job.tokens += count
            job.machine_ns += ns
            job.vectors.append(vectors[start : start + len(own)])
            start += len(own)
            if job.taken == len(job.texts):
                told = self._watch.lose if job.done.cancelled() else self._watch.report
                told(job.machine_ns)
                self._finish(job, None)

    def _finish(self, job: Job, error: Exception | None) -> None:
        with self._something:
            self._jobs.remove(job)
        self._settle(job, error)

    def _settle(self, job: Job, error: Exception | None) -> None:
        assert self._loop is not None

        def settle() -> None:
            if job.done.done():
                return
            if error is not None:
                job.done.set_exception(error)
            else:
                job.done.set_result(job)

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:
            # The loop is closed: nobody waits for it any more.
            self._stopping = True
