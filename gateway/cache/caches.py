"""Both caches as the pipeline sees them: look up, store, never fail a request."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import structlog
from msgspec import Struct
from msgspec.structs import replace

from backends.errors import BackendError
from backends.wire import ChatCompletionRequest
from gateway.background import Background
from gateway.cache import key as keys
from gateway.cache.exact import ExactCache
from gateway.cache.model import CachedAnswer, Hit, Store, StoreUnavailable
from gateway.cache.semantic import Encoder, Encoding, SemanticCache
from gateway.ledger.records import CacheVerdict
from gateway.repeats import Asked
from gateway.settings import CacheSettings
from policies.model import CacheRule

log = structlog.get_logger(__name__)

_MAX_PENDING_STORES = 1_000


class CacheQuery(Struct, frozen=True, kw_only=True):
    """What to look for, after policy and caller have had their say."""

    namespace: str
    """The team."""
    request: keys.WireRequest
    backend: str
    """The first candidate."""
    revision: str
    """Of its model."""
    max_tokens: int | None = None
    """The policy's cap."""
    rule: CacheRule = "semantic"
    """The most that operator, policy and caller allow together."""
    refresh: bool = False
    """Write, do not read."""


class Lookup(Struct, frozen=True, kw_only=True):
    """What was found, and where a fresh answer goes."""

    verdict: CacheVerdict
    hit: Hit | None = None
    exact_key: str | None = None
    semantic_log: str | None = None
    question: str = ""
    encoding: Encoding | None = None
    """Of the question, if it was encoded."""


OFF = Lookup(verdict="off")


class Caches:
    """The exact cache, then the semantic one. No method raises when the store is gone."""

    def __init__(
        self, store: Store, settings: CacheSettings, encoder: Encoder | None = None
    ) -> None:
        self.store_backend = store
        self.settings = settings
        self.exact = ExactCache(store, settings.exact)
        self.semantic: SemanticCache | None = None
        if encoder is not None and settings.semantic.enabled:
            self.semantic = SemanticCache(store, encoder, settings.semantic)
        self._pending = Background()
        self._under_way: dict[str, CachedAnswer] = {}
        """By exact key, what is being stored: a repeat that follows at once finds it."""

    async def lookup(
        self, query: CacheQuery, asked: Asked | None = None, encoding: Encoding | None = None
    ) -> Lookup:
        """Exact, then semantic, as far as the query allows.

        Args:
            asked: remembers the key of the exact cache.
            encoding: of the question, where routing has asked for it already.
        """
        exact_key = self._exact_key(query, asked)
        available = True
        if exact_key is not None and not query.refresh:
            if (fresh := self._under_way.get(exact_key)) is not None:
                return Lookup(verdict="exact", hit=Hit(answer=fresh))
            try:
                hit = await self.exact.get(exact_key)
            except StoreUnavailable:
                available = False
            else:
                if hit is not None:
                    return Lookup(verdict="exact", hit=hit)
        semantic_log, question = self._semantic_log(query)
        if exact_key is None and semantic_log is None:
            return OFF
        miss = Lookup(
            verdict="miss", exact_key=exact_key, semantic_log=semantic_log, question=question
        )
        if not available or semantic_log is None or self.semantic is None:
            return miss
        # Whatever becomes of the look, the encoder works on it, and somebody pays.
        encoding = encoding or self.semantic.encode(question)
        miss = replace(miss, encoding=encoding)
        if query.refresh:
            return miss
        try:
            hit = await self.semantic.lookup(semantic_log, question, encoding)
        except StoreUnavailable:
            return miss
        return miss if hit is None else replace(miss, verdict="semantic", hit=hit)

    def store(self, lookup: Lookup, answer: CachedAnswer) -> None:
        """Store a fresh answer where a lookup missed, in the background."""
        if lookup.verdict != "miss" or len(self._pending) >= _MAX_PENDING_STORES:
            return
        if lookup.exact_key is not None:
            self._under_way[lookup.exact_key] = answer
        self._pending.start(self._store(lookup, answer))

    async def clear(self, namespace: str) -> int:
        """Delete a namespace's entries; how many there were. Raises StoreUnavailable."""
        removed = 0
        for prefix in keys.namespace_prefixes(namespace):
            found = [key async for key in self.store_backend.scan(prefix)]
            removed += await self.store_backend.delete(*found)
            if self.semantic:
                self.semantic.forget(prefix)
        return removed

    async def settled(self) -> None:
        """Wait until what was stored is stored."""
        await self._pending.settled()

    async def aclose(self) -> None:
        """Finish storing (briefly) and close the store."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._pending.settled()
        await self.store_backend.aclose()

    async def state(self) -> dict[str, Any]:
        """For /health."""
        return {
            "store": "ok" if await self.store_backend.ping() else "unavailable",
            "exact": self.settings.exact.enabled,
            "semantic": self.semantic is not None,
            "encoder_late": self.semantic.late if self.semantic else 0,
            "guarded": self.semantic.guarded if self.semantic else 0,
        }

    def _exact_key(self, query: CacheQuery, asked: Asked | None) -> str | None:
        settings = self.settings.exact
        if not settings.enabled or query.rule == "off":
            return None
        if not keys.is_repeatable(query.request, sampled=settings.sampled):
            return None
        inputs = (query.namespace, query.backend, query.revision, query.max_tokens)
        known: str | None = asked.recall("exact_key", inputs) if asked else None
        if known is not None:
            return known
        key = keys.exact_key(
            query.namespace, query.request, query.backend, query.revision, query.max_tokens
        )
        return asked.remember("exact_key", inputs, key) if asked else key

    def _semantic_log(self, query: CacheQuery) -> tuple[str | None, str]:
        if self.semantic is None or query.rule != "semantic":
            return None, ""
        if not keys.is_repeatable(query.request, sampled=self.settings.exact.sampled):
            return None, ""
        question = keys.semantic_text(query.request)
        if question is None or not isinstance(query.request, ChatCompletionRequest):
            return None, ""
        return keys.semantic_log(
            query.namespace,
            query.request,
            query.backend,
            query.revision,
            query.max_tokens,
            self.semantic.encoder.revision,
        ), question

    async def _store(self, lookup: Lookup, answer: CachedAnswer) -> None:
        writes: list[Coroutine[Any, Any, Any]] = []
        if lookup.exact_key is not None:
            writes.append(self._store_exact(lookup.exact_key, answer))
        log_key, encoding = lookup.semantic_log, lookup.encoding
        if log_key is not None and encoding is not None and self.semantic is not None:
            writes.append(self.semantic.put(log_key, lookup.question, encoding, answer))
        for result in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(result, StoreUnavailable | BackendError):
                continue  # the store has warned already; an encoder that is gone stores nothing
            if isinstance(result, BaseException):
                log.error("cache_store_failed", error=repr(result))

    async def _store_exact(self, key: str, answer: CachedAnswer) -> None:
        try:
            await self.exact.put(key, answer)
        finally:
            if self._under_way.get(key) is answer:
                del self._under_way[key]
