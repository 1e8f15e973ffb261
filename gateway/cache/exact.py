"""The exact cache: the same request to the same model, word for word."""

import msgspec

from gateway.cache.model import CachedAnswer, Hit, Store
from gateway.settings import ExactSettings

_decode = msgspec.msgpack.Decoder(CachedAnswer).decode
_encode = msgspec.msgpack.Encoder().encode


class ExactCache:
    """Answers by key. Raises StoreUnavailable as its store does."""

    def __init__(self, store: Store, settings: ExactSettings) -> None:
        self._store = store
        self._settings = settings

    async def get(self, key: str) -> Hit | None:
        """The stored answer, None if there is none."""
        value = await self._store.get(key)
        return None if value is None else Hit(answer=_decode(value))

    async def put(self, key: str, answer: CachedAnswer) -> bool:
        """Store an answer; False if it is larger than allowed."""
        value = _encode(answer)
        if len(value) > self._settings.max_value_bytes:
            return False
        await self._store.set(key, value, ttl_s=self._settings.ttl_s)
        return True
