"""Breakers shared through Redis: what one gateway finds out of a backend, all know within a second.

Each breaker that opens or closes here is written to a hash, with the moment until which it is open
by Redis's clock; every `INTERVAL_S` the hash is read, and what is newer is taken over. With Redis
away each gateway goes by what it sees itself, and tells what it found out when Redis is back.
"""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Iterable, Mapping

import structlog

from gateway.cache.model import StoreUnavailable
from gateway.limits.redis_store import Command, Script
from gateway.routing.health import BackendRegistry
from gateway.settings import BackendSettings

log = structlog.get_logger(__name__)

INTERVAL_S = 0.4
_HASH = b"headgate:breakers"
_HASH_TTL_MS = 86_400_000
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)"

_TELL = f"""
{_NOW}
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
local told = version .. ' ' .. ARGV[2] .. ' ' .. (now + ARGV[3]) .. ' ' .. ARGV[4]
redis.call('HSET', KEYS[1], ARGV[1], told)
redis.call('PEXPIRE', KEYS[1], {_HASH_TTL_MS})
return version
"""
_LOOK = f"{_NOW} return {{now, redis.call('HGETALL', KEYS[1])}}"


class SharedBreakers:
    """One per gateway process.

    Args:
        registry: whose breakers are shared.
        command: sends one command; raises StoreUnavailable when Redis is away.
        identities: by breaker, what is the same in all gateways that mean the same server.
    """

    def __init__(
        self, registry: BackendRegistry, command: Command, identities: Mapping[str, str]
    ) -> None:
        self._registry = registry
        self._command = command
        self._identity = identities
        self._name_of = {identity: name for name, identity in identities.items()}
        self._tell, self._look = Script(_TELL), Script(_LOOK)
        self._known: dict[str, int] = {}
        """The newest version that was taken over or told, by breaker."""
        self._untold: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over what is known, and keep in step."""
        self._registry.on_breaker = self._changed
        with contextlib.suppress(StoreUnavailable):
            await self.look()
        self._task = asyncio.create_task(self._watch(), name="breakers")

    async def aclose(self) -> None:
        """Stop sharing."""
        self._registry.on_breaker = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def tell(self) -> None:
        """Write what changed here. Raises StoreUnavailable; it stays to be told."""
        while self._untold:
            name = next(iter(self._untold))
            opened, left_s, error = self._registry.breaker(name)
            told = (b"%d" % opened, b"%d" % (left_s * 1000), error[:200].encode("utf-8", "replace"))
            field = self._identity[name].encode()
            version = await self._tell.run(self._command, [_HASH], [field, *told])
            self._known[name] = int(version)
            self._untold.pop(name, None)

    async def look(self) -> None:
        """Take over what others wrote. Raises StoreUnavailable."""
        now_ms, flat = await self._look.run(self._command, [_HASH], [])
        for identity, told in zip(flat[::2], flat[1::2], strict=True):
            name = self._name_of.get(identity.decode())
            if name is None or name in self._untold:
                continue
            version, opened, until_ms, error = told.decode("utf-8", "replace").split(" ", 3)
            if int(version) <= self._known.get(name, 0):
                continue
            self._known[name] = int(version)
            left_s = (int(until_ms) - now_ms) / 1000
            self._registry.adopt_breaker(name, int(opened), max(left_s, 0.0), error)

    def _changed(self, name: str) -> None:
        if name in self._identity:
            self._untold[name] = None
            self._wake.set()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.tell()
                await self.look()
            except StoreUnavailable:
                await asyncio.sleep(INTERVAL_S)  # local breakers go on
            except Exception:
                log.exception("breakers_not_shared")
                await asyncio.sleep(INTERVAL_S)


def identities(
    breakers: Iterable[str], backends: Mapping[str, BackendSettings], place: str
) -> dict[str, str]:
    """By breaker (NAME or NAME@ADDRESS), what it is for all gateways: the server's addresses, or
    this host's own process.

    Args:
        place: where this gateway's own processes are, unique on this host.
    """
    found = {}
    for breaker in breakers:
        backend = backends[breaker.partition("@")[0]]
        where = sorted(backend.base_urls) or [socket.gethostname(), place]
        digest = hashlib.sha256("\0".join([backend.model, *where]).encode()).hexdigest()[:16]
        found[breaker] = f"{breaker}:{digest}"
    return found
