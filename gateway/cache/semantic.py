"""The semantic cache: the same question in other words.

Questions that agree in everything but the last user turn (system prompt, earlier turns,
parameters, backend, encoder revision) share one log in the store. Each gateway process keeps a
vector index per log and reads what was added since its last look, while the encoder works on the
question: a restart and a second process see the same entries. A match needs the cosine and the
guard; the answer itself is fetched from the store, so an expired one is a miss.
"""

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import structlog
from msgspec import Struct
from numpy.typing import NDArray

from backends.contract import Backend, GenerateRequest, Usage
from gateway.cache import guard
from gateway.cache.model import CachedAnswer, Hit, Store
from gateway.settings import SemanticSettings

if TYPE_CHECKING:
    from usearch.index import Index

log = structlog.get_logger(__name__)

Vector = NDArray[np.float32]
_MAX_INDEXES = 512
_CANDIDATES = 8
_decode_answer = msgspec.msgpack.Decoder(CachedAnswer).decode
_encode = msgspec.msgpack.Encoder().encode


class Entry(Struct, frozen=True, array_like=True):
    """One line of a log."""

    question: str
    vector: bytes
    """float16, unit length."""
    answer_key: str
    written_at: float


_decode_entry = msgspec.msgpack.Decoder(Entry).decode


class Encoded(Struct, frozen=True):
    """A text as a vector."""

    vector: Vector
    """[D] float32, unit length."""
    usage: Usage | None = None
    """What that took of the encoder's machine."""


Encoding = asyncio.Task[Encoded]
"""A text on its way through the encoder; it outlives a lookup that could not wait for it."""


class Encoder(Protocol):
    """Text to unit vectors."""

    name: str
    """Of the backend that encodes."""
    revision: str

    async def encode(self, text: str) -> Encoded:
        """Raises BackendError."""
        ...


class BackendEncoder:
    """An embeddings backend as an `Encoder`."""

    def __init__(self, backend: Backend, *, model: str, revision: str = "") -> None:
        self.name = backend.name
        self.revision = revision or model
        self._backend = backend
        self._model = model

    async def encode(self, text: str) -> Encoded:
        body: dict[str, Any] = {"model": self._model, "input": text}
        done = await self._backend.generate(
            GenerateRequest(request_id="semantic", endpoint="embeddings", body=body, timeout_s=10.0)
        )
        vector = np.asarray(done.body["data"][0]["embedding"], dtype=np.float32)
        norm = float(np.linalg.norm(vector))
        return Encoded(vector / norm if norm else vector, done.usage)


class _LogIndex:
    """The vectors of one log."""

    def __init__(self) -> None:
        self.position = "0"
        self.entries: dict[int, Entry] = {}
        self._next = 0
        self._index: Index | None = None

    def add(self, entry: Entry) -> None:
        vector = np.frombuffer(entry.vector, dtype=np.float16)
        if self._index is None:
            from usearch.index import Index  # 5 MB that a gateway without this cache saves

            self._index = Index(ndim=vector.size, metric="cos", dtype="f16")
        elif self._index.ndim != vector.size:
            return
        self._index.add(self._next, vector)
        self.entries[self._next] = entry
        self._next += 1

    def drop(self, number: int) -> None:
        self.entries.pop(number, None)
        if self._index is not None:
            self._index.remove(number)

    def shrink(self, max_entries: int, oldest: float) -> None:
        """Forget what the log has forgotten: too many, or written before `oldest`."""
        while self.entries:
            first = next(iter(self.entries))
            fits = len(self.entries) <= max_entries
            if fits and self.entries[first].written_at >= oldest:
                return
            self.drop(first)

    def nearest(self, vector: Vector) -> list[tuple[int, Entry, float]]:
        """(number, entry, cosine), nearest first."""
        if self._index is None or not self.entries:
            return []
        found = self._index.search(vector, min(_CANDIDATES, len(self.entries)))
        return [
            (int(number), self.entries[int(number)], 1.0 - float(distance))
            for number, distance in zip(found.keys, found.distances, strict=True)
            if int(number) in self.entries
        ]


class SemanticCache:
    """Answers by meaning. `lookup` and `put` raise StoreUnavailable as the store does."""

    def __init__(self, store: Store, encoder: Encoder, settings: SemanticSettings) -> None:
        self.encoder = encoder
        self.late = 0
        """Lookups that missed because the encoder was late or gone."""
        self.guarded = 0
        """Near vectors that the guard refused."""
        self._store = store
        self._settings = settings
        self._indexes: OrderedDict[str, _LogIndex] = OrderedDict()

    def encode(self, question: str) -> Encoding:
        """Ask the encoder about a question."""
        encoding = asyncio.create_task(self.encoder.encode(question))
        encoding.add_done_callback(heed)
        return encoding

    async def lookup(self, log_key: str, question: str, encoding: Encoding) -> Hit | None:
        """The answer to a question that means the same; none, too, where the encoder is late."""
        try:
            vector, index = await asyncio.gather(self._vector(encoding), self._synced(log_key))
        except asyncio.CancelledError:
            encoding.cancel()  # nobody will charge it to anyone
            raise
        if vector is None:
            return None
        for number, entry, similarity in index.nearest(vector):
            if similarity < self._settings.threshold:
                break
            if self._settings.guard:
                why = guard.difference(question, entry.question)
                if why is not None:
                    self.guarded += 1
                    log.debug("semantic_match_refused", why=why, similarity=round(similarity, 4))
                    continue
            value = await self._store.get(entry.answer_key)
            if value is None:
                index.drop(number)
                continue
            return Hit(answer=_decode_answer(value), similarity=similarity)
        return None

    async def put(
        self, log_key: str, question: str, encoding: Encoding, answer: CachedAnswer
    ) -> None:
        """Store an answer under a question, once that is encoded."""
        vector = (await encoding).vector
        answer_key = f"{log_key}:{answer.request_id}"
        await self._store.set(answer_key, _encode(answer), ttl_s=self._settings.ttl_s)
        entry = Entry(question, vector.astype(np.float16).tobytes(), answer_key, answer.created_at)
        await self._store.append(
            log_key,
            _encode(entry),
            max_entries=self._settings.max_entries,
            ttl_s=self._settings.ttl_s,
        )

    def forget(self, prefix: str) -> None:
        """Drop this process's indexes of a namespace, after its entries were deleted."""
        for key in [key for key in self._indexes if key.startswith(prefix)]:
            del self._indexes[key]

    async def _vector(self, encoding: Encoding) -> Vector | None:
        done, _ = await asyncio.wait({encoding}, timeout=self._settings.timeout_s)
        if done and encoding.exception() is None:
            return encoding.result().vector
        self.late += 1
        log.debug("encoder_late", error=str(encoding.exception()) if done else "timed out")
        return None

    async def _synced(self, log_key: str) -> _LogIndex:
        index = self._indexes.get(log_key)
        if index is None:
            index = self._indexes[log_key] = _LogIndex()
            while len(self._indexes) > _MAX_INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(log_key)
        for position, value in await self._store.read(log_key, index.position):
            if _order(position) > _order(index.position):  # else a lookup beside us has read it
                index.add(_decode_entry(value))
                index.position = position
        index.shrink(self._settings.max_entries, time.time() - self._settings.ttl_s)
        return index


def heed(encoding: Encoding) -> None:
    """Look at how it ended: a failure that nobody waits for is no news to the event loop."""
    if not encoding.cancelled():
        encoding.exception()


def _order(position: str) -> tuple[int, ...]:
    return tuple(int(part) for part in position.split("-"))
