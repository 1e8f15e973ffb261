"""Limits counted in Redis, exactly, for all processes: one script, one round trip.

Redis's clock counts. A window is a hash of slots; requests under way are a hash of processes, of
which only those count that said lately that they live: a killed process's requests end with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from gateway.cache.model import StoreUnavailable
from gateway.ledger.worker_id import worker_id
from gateway.limits.window import SLOT_MS, SLOTS, Change, Demand, Level, Verdict

LIVE_MS = 10_000
"""How long after its last beat a process counts as live."""
_PREFIX = b"headgate:limit:"
_PROCESSES = _PREFIX + b"processes"
_HASH_TTL_MS = 86_400_000

_ADMIT = f"""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local slot = math.floor(now / {SLOT_MS})
local me = ARGV[1]
local n = #KEYS - 1
local sums, newest, answer, listed = {{}}, {{}}, {{slot, 0, 0}}, false
for i = 1, n do
  local key, kind = KEYS[i + 1], ARGV[3 * i - 1]
  local limit, amount = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local sum, slots = 0, {{}}
  if kind == 'concurrent' then
    local live = redis.call('ZRANGEBYSCORE', KEYS[1], now - {LIVE_MS}, '+inf')
    for _, process in ipairs(live) do listed = listed or process == me end
    if #live > 0 then
      for _, count in ipairs(redis.call('HMGET', key, unpack(live))) do
        sum = sum + math.max(tonumber(count) or 0, 0)
      end
    end
  else
    local all = redis.call('HGETALL', key)
    for j = 1, #all, 2 do
      local at, count = tonumber(all[j]), tonumber(all[j + 1])
      if at < slot - {SLOTS} then
        redis.call('HDEL', key, all[j])
      else
        sum = sum + count
        slots[#slots + 1] = {{at, count}}
        if not newest[i] or at > newest[i] then newest[i] = at end
      end
    end
  end
  sums[i] = sum
  if sum + amount > limit and answer[2] == 0 then
    answer[2] = i
    if amount > limit then
      answer[3] = -1
    elseif kind == 'concurrent' then
      answer[3] = 1000
    else
      table.sort(slots, function(a, b) return a[1] < b[1] end)
      local left = sum
      for _, s in ipairs(slots) do
        left = left - s[2]
        answer[3] = (s[1] + {SLOTS + 1}) * {SLOT_MS} - now
        if left + amount <= limit then break end
      end
    end
  end
end
for i = 1, n do
  local key, kind, amount = KEYS[i + 1], ARGV[3 * i - 1], tonumber(ARGV[3 * i + 1])
  local leaves = 0
  if answer[2] == 0 then
    if kind == 'concurrent' then
      redis.call('HINCRBY', key, me, amount)
      redis.call('PEXPIRE', key, {_HASH_TTL_MS})
      if not listed then redis.call('ZADD', KEYS[1], now, me) end
    else
      if redis.call('HINCRBY', key, slot, amount) == amount then  -- the slot's first
        redis.call('PEXPIRE', key, {(SLOTS + 2) * SLOT_MS})
      end
      newest[i] = slot
    end
    sums[i] = sums[i] + amount
  end
  if newest[i] then leaves = (newest[i] + {SLOTS + 1}) * {SLOT_MS} - now end
  answer[#answer + 1] = math.max(sums[i], 0)
  answer[#answer + 1] = leaves
end
return answer
"""

_BEAT = f"""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - {6 * LIVE_MS})
redis.call('PEXPIRE', KEYS[1], {_HASH_TTL_MS})
return redis.call('ZCOUNT', KEYS[1], now - {LIVE_MS}, '+inf')
"""

_CORRECT = """
for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then
    redis.call('HINCRBY', key, ARGV[2 * i - 1], ARGV[2 * i])
  end
end
"""

Command = Callable[..., Awaitable[Any]]
Start = Callable[..., "asyncio.Future[Any] | None"]


class Script:
    """A script sent by its digest; whole only when Redis has forgotten it."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._sha1: bytes | None = None

    async def run(self, command: Command, keys: list[bytes], arguments: list[bytes]) -> Any:
        if self._sha1 is None:
            self._sha1 = await command(b"SCRIPT", b"LOAD", self._text)
        count = b"%d" % len(keys)
        try:
            return await command(b"EVALSHA", self._sha1, count, *keys, *arguments)
        except ResponseError:
            pass  # it was restarted, and has forgotten the script
        return await command(b"EVAL", self._text, count, *keys, *arguments)

    def start(
        self, start: Start, keys: list[bytes], arguments: list[bytes]
    ) -> "asyncio.Future[Any] | None":
        """The same on its way at once; None: not that quickly."""
        if self._sha1 is None:
            return None
        return start(b"EVALSHA", self._sha1, b"%d" % len(keys), *keys, *arguments)


class RedisLimits:
    """Limits of all processes that share a Redis.

    Args:
        command: sends one command; raises StoreUnavailable when Redis is away, and ResponseError.
        start: sends one at once, if it can.
    """

    def __init__(
        self,
        command: Command,
        start: Start = lambda *_: None,
        *,
        process: str | None = None,
    ) -> None:
        self._command = command
        self._start = start
        self._process = (process or worker_id()).encode()
        self._admit, self._beat, self._correct = map(Script, (_ADMIT, _BEAT, _CORRECT))
        self._sending: set[asyncio.Task[Any]] = set()

    async def admit(self, demands: Sequence[Demand]) -> Verdict:
        """One round trip."""
        return self.verdict(await self._admit.run(self._command, *self._asked(demands)))

    def begin(self, demands: Sequence[Demand]) -> "asyncio.Future[Any] | None":
        """Ask at once, for `verdict` to read the answer; None: `admit` has to."""
        return self._admit.start(self._start, *self._asked(demands))

    def _asked(self, demands: Sequence[Demand]) -> tuple[list[bytes], list[bytes]]:
        keys, arguments = [_PROCESSES], [self._process]
        for demand in demands:
            keys.append(_key(demand))
            arguments += (demand.kind.encode(), b"%d" % demand.limit, b"%d" % demand.amount)
        return keys, arguments

    @staticmethod
    def verdict(answer: list[int]) -> Verdict:
        """The script's answer."""
        slot, refused, retry_ms, *rest = answer
        levels = tuple(Level(rest[i], rest[i + 1]) for i in range(0, len(rest), 2))
        return Verdict(levels, slot, refused - 1 if refused else None, retry_ms)

    def correct(self, changes: Sequence[Change], slot: int) -> None:
        keys = [_key(demand) for demand, _ in changes]
        arguments: list[bytes] = []
        for demand, more in changes:
            field = self._process if demand.kind == "concurrent" else b"%d" % slot
            arguments += (field, b"%d" % more)
        sent = self._correct.start(self._start, keys, arguments)
        if sent is not None:
            sent.add_done_callback(_forget)
            return
        task = asyncio.get_running_loop().create_task(self._forgiving(keys, arguments))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def beat(self) -> int:
        """Raises StoreUnavailable."""
        return int(await self._beat.run(self._command, [_PROCESSES], [self._process]))

    async def _forgiving(self, keys: list[bytes], arguments: list[bytes]) -> None:
        try:
            await self._correct.run(self._command, keys, arguments)
        except StoreUnavailable:
            return


def _forget(sent: "asyncio.Future[Any]") -> None:
    """The window forgets within a minute, a beat within ten seconds."""
    if not sent.cancelled():
        sent.exception()


def _key(demand: Demand) -> bytes:
    return _PREFIX + demand.kind.encode() + b":" + demand.subject.encode("utf-8", "replace")
