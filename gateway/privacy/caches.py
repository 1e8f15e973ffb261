"""The stores in Redis: answers, the questions that led to them, rate limits' counters."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gateway.cache.key import namespace_prefixes
from gateway.cache.model import CachedAnswer
from gateway.cache.semantic import Entry
from gateway.privacy.model import Places, Subject

_answer = msgspec.msgpack.Decoder(CachedAnswer).decode
_entry = msgspec.msgpack.Decoder(Entry).decode
_EVERY_ANSWER = namespace_prefixes("")[0][:-2], namespace_prefixes("")[1][:-2]


class CachedAnswers:
    """Both caches. A team's keys bear its name; of users and keys the request ids tell."""

    name = "caches"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if places.redis is None:
            return found
        async for key in _answers(places.redis, subject):
            if await places.redis.type(key) == b"stream":
                found += [
                    {"key": key.decode(), "question": entry.question}
                    for _, entry in await _entries(places.redis, key, subject)
                ]
            else:
                answer = await _own_answer(places.redis, key, subject)
                if answer is not None:
                    found.append({"key": key.decode(), "answer": answer.body})
        return found

    async def delete(self, places: Places, subject: Subject) -> int:
        gone = 0
        if places.redis is None:
            return _without_dump(places)
        async for key in _answers(places.redis, subject):
            if subject.kind == "team":
                gone += await places.redis.delete(key)
            elif await places.redis.type(key) == b"stream":
                own = await _entries(places.redis, key, subject)
                if own:
                    gone += await places.redis.xdel(key, *(position for position, _ in own))
            elif await _own_answer(places.redis, key, subject) is not None:
                gone += await places.redis.delete(key)
        if gone and places.settings.cache.redis == "auto":
            await places.redis.save()  # else the last dump would still have it
        return gone


class LimitCounters:
    """Rate limits' windows and marks; they forget by themselves within a minute."""

    name = "rate limits"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        if places.redis is None:
            return []
        return [{"key": key.decode()} async for key in _limits(places.redis, subject)]

    async def delete(self, places: Places, subject: Subject) -> int:
        if places.redis is None:
            return 0
        return sum([await places.redis.delete(k) async for k in _limits(places.redis, subject)])


async def _answers(redis: Any, subject: Subject) -> AsyncIterator[bytes]:
    """Keys that may hold the subject's answers and questions."""
    prefixes = namespace_prefixes(subject.name) if subject.kind == "team" else _EVERY_ANSWER
    for prefix in prefixes:
        async for key in redis.scan_iter(match=_escape(prefix) + "*", count=1_000):
            yield key


async def _limits(redis: Any, subject: Subject) -> AsyncIterator[bytes]:
    for _, name in subject.everybody:
        async for key in redis.scan_iter(match=f"headgate:limit:*{_escape(name)}*", count=1_000):
            yield key


async def _own_answer(redis: Any, key: bytes, subject: Subject) -> CachedAnswer | None:
    value = await redis.get(key)
    if value is None:
        return None
    answer = _answer(value)
    own = subject.kind == "team" or answer.request_id in subject.request_ids
    return answer if own else None


async def _entries(redis: Any, log: bytes, subject: Subject) -> list[tuple[bytes, Entry]]:
    """A log's entries that are the subject's, or whose answer is gone: nobody can use those."""
    found = []
    for position, fields in await redis.xrange(log):
        entry = _entry(fields[b"e"])
        request_id = entry.answer_key.rpartition(":")[2]
        own = subject.kind == "team" or request_id in subject.request_ids
        if own or not await redis.exists(entry.answer_key):
            found.append((position, entry))
    return found


def _without_dump(places: Places) -> int:
    """The private Redis does not run: what it would load at its next start goes as a whole."""
    if places.settings.cache.redis != "auto":
        return 0
    dump = places.state_dir / "redis" / "cache.rdb"
    if not dump.exists():
        return 0
    dump.unlink()
    return 1


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in text)
