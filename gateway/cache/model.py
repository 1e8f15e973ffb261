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
    """Bytes by key with a time to live, and append-only logs: Redis or memory.

    Every method raises StoreUnavailable when the store cannot be reached.
    """

    async def get(self, key: str) -> bytes | None:
        """The value, None if there is none or it has expired."""
        ...

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Write or replace."""
        ...

    async def delete(self, *keys: str) -> int:
        """Remove keys and logs; how many there were."""
        ...

    async def append(self, log: str, entry: bytes, *, max_entries: int, ttl_s: float) -> str:
        """Add an entry to a log, the oldest going first; its position."""
        ...

    async def read(self, log: str, after: str) -> list[tuple[str, bytes]]:
        """(position, entry) of all entries after a position ("0": all), oldest first."""
        ...

    def scan(self, prefix: str) -> AsyncIterator[str]:
        """Every key and log that begins with `prefix`."""
        ...

    async def ping(self) -> bool:
        """Whether the store answers; never raises."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


class StoreUnavailable(Exception):
    """The store cannot be reached; requests pass uncached."""
