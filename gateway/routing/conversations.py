"""Where the last turn of a conversation was answered, known to every process.

A turn is found by what the user said until then: a digest of the team and of all messages up to the
turn before, answers left out, as clients change those. Kept for as long as a prefix cache may be
expected to remember, in the store of the caches; without it no conversation sticks.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from backends.wire import ChatCompletionRequest, Message
from gateway.background import Background
from gateway.cache.model import Store, StoreUnavailable
from gateway.routing.features import Request
from policies.model import Warm

_PREFIX = "headgate:chat:"
_MOST_WRITES = 1_000
"""At once; more than a store that answers ever has."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Warm).decode


class Conversations:
    """One per gateway process.

    Args:
        keep_s: how long a turn is remembered; 0: never.
    """

    def __init__(self, store: Store, keep_s: float) -> None:
        self._store = store
        self._keep_s = keep_s
        self._writes = Background()

    async def warm(self, request: Request, team: str) -> Warm | None:
        """Who answered the turn before this one, if that was lately."""
        if not self._keep_s or not isinstance(request, ChatCompletionRequest):
            return None
        asked = [place for place, m in enumerate(request.messages) if m.role == "user"]
        if len(asked) < 2:
            return None
        try:
            found = await self._store.get(_key(request.messages[: asked[-2] + 1], team))
        except StoreUnavailable:
            return None
        return None if found is None else _decode(found)

    def note(self, request: Request, team: str, warm: Warm) -> None:
        """Remember who answered this turn; nobody waits for it."""
        if not self._keep_s or not isinstance(request, ChatCompletionRequest):
            return
        asked = [place for place, m in enumerate(request.messages) if m.role == "user"]
        if not asked or len(self._writes) >= _MOST_WRITES:
            return
        self._writes.start(self._write(_key(request.messages[: asked[-1] + 1], team), warm))

    async def settled(self) -> None:
        """Wait for what is being written."""
        await self._writes.settled()

    async def _write(self, key: str, warm: Warm) -> None:
        try:
            await self._store.set(key, _encode(warm), ttl_s=self._keep_s)
        except StoreUnavailable:
            return  # the next turn is decided as if it were the first


def _key(messages: Sequence[Message], team: str) -> str:
    digest = hashlib.blake2b(team.encode("utf-8", "surrogatepass"), digest_size=16)
    for message in messages:
        if message.role != "assistant":
            digest.update(b"\0" + message.role.encode() + b"\0")
            digest.update(message.text().encode("utf-8", "surrogatepass"))
    return _PREFIX + digest.hexdigest()
