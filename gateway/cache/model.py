"""What the caches keep, and the store they keep it in."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from msgspec import Struct


class CachedAnswer(Struct, frozen=True, kw_only=True):
    """A whole answer, enough to be replayed as JSON or as a stream."""

    request_id: str
    """Of the request that produced it."""
    backend: str
    model: str
    """The model name the client saw."""
    body: dict[str, Any]
    """The OpenAI response body."""
    cost_nano_usd: int
    """What it cost to produce."""
    created_at: float
    """Unix seconds."""


class Hit(Struct, frozen=True, kw_only=True):
    """An entry found."""

    answer: CachedAnswer
    similarity: float | None = None
    """Cosine; None for an exact hit."""


class Store(Protocol):
    """Bytes by key, with a time to live: Redis or memory.

    Raises:
        StoreUnavailable: the store cannot be reached.
    """

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    async def delete(self, *keys: str) -> int: ...

    def scan(self, prefix: str) -> AsyncIterator[str]: ...

    async def ping(self) -> bool: ...

    async def aclose(self) -> None: ...


class StoreUnavailable(Exception):
    """The store cannot be reached; requests pass uncached."""
