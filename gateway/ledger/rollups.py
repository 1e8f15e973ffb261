"""What one request adds to the roll-ups: pure, so that writing and checking cannot disagree.

A roll-up is keyed by a bucket of time (a quarter of an hour, an hour, a UTC day, an hour from half
past to half past) and by every group key whose values are few. Time zones shift by whole quarters,
so days and hours of all of them are sums of buckets; most that do not shift by hours (India, Iran,
central Australia) shift by half ones.

`user` and tags may have as many values as there are requests. What a request adds is added once
more, to its half hour and its UTC day only, under its user and under each of its tags: the details.
Requests without a user, or without that tag, are the whole less its details. For two of these at
once, it is added under the set of all that it has, to its UTC day and month.

Two facts are kept. `request`: once per request, in the bucket in which it started, under who
answered. `charge`: once per charge, in the bucket in which it was booked. A request counts once in
each group that it has a charge in, per quarter of an hour; which of its charges are the first of
their group depends on the group's keys, so `firsts` holds one bit for every set of them.
"""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from gateway.ledger.records import ChargeRecord, RequestRecord, Settlement
from gateway.ledger.report_query import TAG, USER
from gateway.ledger.rows import to_us

QUARTER_S, HALF_S, HOUR_S, DAY_S = 900, 1_800, 3_600, 86_400
HALF_PAST_S = -HOUR_S
"""The name of hours that begin at half past."""
MONTH_S = 31 * DAY_S
"""The name of UTC's calendar months, as long as most of them."""
SPANS_S = (QUARTER_S, HOUR_S, DAY_S, HALF_PAST_S)
DETAIL_SPANS_S = (HALF_S, DAY_S)
SET_SPANS_S = (DAY_S, MONTH_S)
QUARTER_US, HALF_US, HOUR_US, DAY_US = (
    span_s * 1_000_000 for span_s in (QUARTER_S, HALF_S, HOUR_S, DAY_S)
)
SET = "set"
"""The dimension of sets of two and more; the value is the JSON object of its members."""
WORK_KEYS = ("backend", "machine", "machine_type", "kind")
GROUP_KEYS = ("team", "key", "model", "policy", "rule", "task")
SUMS = (
    "requests",
    "errors",
    "cache_hits_exact",
    "cache_hits_semantic",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "saved_nano_usd",
    "cost_nano_usd",
    "machine_ns",
)

Key = tuple[str | int | bool | None, ...]
"""(fact, *GROUP_KEYS, *WORK_KEYS, charged, firsts)"""
Detail = tuple[str, str]
"""(dimension: `user`, `tag:NAME` or SET, value)"""
Bucket = tuple[int, int]
"""(unix microseconds of the quarter's begin, id of the key)"""
DetailBucket = tuple[int, int, int]
"""(unix microseconds of the half hour's begin, id of the detail, id of the key)"""
Sums = list[int]
"""In the order of SUMS. Shared, and so never changed in place."""
_At = TypeVar("_At", bound=tuple[int, ...])

_SETS = 2 ** len(WORK_KEYS)
_ALL_FIRST = 2**_SETS - 1
_encode = msgspec.json.Encoder().encode


def first_bit(keys: Iterable[str]) -> int:
    """The bit of `firsts` for groups by these of WORK_KEYS; others do not matter."""
    return 1 << sum(1 << WORK_KEYS.index(key) for key in set(keys) if key in WORK_KEYS)


class Totals(Struct, frozen=True):
    """What some requests add."""

    quarters: dict[Bucket, Sums] = field(default_factory=dict)
    details: dict[DetailBucket, Sums] = field(default_factory=dict)
    sets: dict[DetailBucket, Sums] = field(default_factory=dict)
    """Of UTC days in place of half hours."""
    keys: dict[int, Key] = field(default_factory=dict)
    """By id."""
    values: dict[int, Detail] = field(default_factory=dict)
    """By id."""


@lru_cache(maxsize=16_384)
def key_id(key: Key | Detail) -> int:
    """63 bits of a hash: the same in every process, and never two keys' in practice."""
    return int.from_bytes(hashlib.sha256(_encode(key)).digest()[:8]) >> 1


@lru_cache(maxsize=1024)
def dimension_id(dimension: str) -> int:
    """Of `user` or a tag's name, as key_id."""
    return int.from_bytes(hashlib.sha256(dimension.encode()).digest()[:8]) >> 1


def details_of(request: RequestRecord) -> list[Detail]:
    """The user and the tags that a request counts under."""
    found = [(TAG + name, value) for name, value in request.tags.items()]
    return found if request.user is None else [(USER, request.user), *found]


def set_of(details: Sequence[Detail]) -> Detail | None:
    """All of them as one; None: there are no two."""
    return (SET, _encode(dict(sorted(details))).decode()) if len(details) > 1 else None


def contributions(settlement: Settlement) -> Iterator[tuple[int, Key, Sums]]:
    """What a request with all its charges adds, by the quarter's begin in unix microseconds."""
    request, charges = settlement.request, settlement.charges
    r = request
    group = (r.team, r.key, r.model, r.policy, r.rule, r.task)
    failed = int(r.outcome == "error")
    key: Key = ("request", *group, r.backend, None, None, None, bool(charges), 0)
    yield _quarter(to_us(r.started_at)), key, _of_request(request, failed)
    if len(charges) == 1:
        yield _of_charge(charges[0], group, failed, _ALL_FIRST)
        return
    for charge, firsts in _firsts(charges):
        yield _of_charge(charge, group, failed, firsts)


def _of_request(r: RequestRecord, failed: int) -> Sums:
    exact, semantic = int(r.cache == "exact"), int(r.cache == "semantic")
    tokens = (r.prompt_tokens, r.cached_prompt_tokens, r.completion_tokens)
    return [1, failed, exact, semantic, *tokens, r.saved_nano_usd, 0, 0]


def _of_charge(
    c: ChargeRecord, group: tuple[str, ...], failed: int, firsts: int
) -> tuple[int, Key, Sums]:
    key: Key = ("charge", *group, c.backend, c.machine, c.machine_type, c.kind, True, firsts)
    tokens = (c.prompt_tokens, c.cached_prompt_tokens, c.completion_tokens)
    sums = [1, failed, 0, 0, *tokens, 0, c.cost_nano_usd, c.machine_ns]
    return _quarter(to_us(c.at)), key, sums


def _firsts(charges: Sequence[ChargeRecord]) -> Iterator[tuple[ChargeRecord, int]]:
    """Each charge with the sets of WORK_KEYS in whose groups it is the request's first."""
    seen: set[tuple[object, ...]] = set()
    for charge in sorted(charges, key=lambda c: c.seq):
        values = (charge.backend, charge.machine, charge.machine_type, charge.kind)
        quarter, firsts = _quarter(to_us(charge.at)), 0
        for number in range(_SETS):
            chosen = (number, quarter, *(v for i, v in enumerate(values) if number >> i & 1))
            if chosen not in seen:
                seen.add(chosen)
                firsts |= 1 << number
        yield charge, firsts


def _quarter(at_us: int) -> int:
    return bucket_us(QUARTER_S, at_us)


def bucket_us(span_s: int, at_us: int) -> int:
    """The begin of the span's bucket that holds a moment, unix microseconds."""
    if span_s == MONTH_S:
        return (
            at_us
            - at_us % DAY_US
            - (datetime.fromtimestamp(at_us // 1_000_000, UTC).day - 1) * DAY_US
        )
    late_us = HOUR_S * 500_000 if span_s == HALF_PAST_S else 0
    return at_us - (at_us - late_us) % (abs(span_s) * 1_000_000)


def month_end_us(begin_us: int) -> int:
    """When the UTC month is over that begins then, unix microseconds."""
    return bucket_us(MONTH_S, begin_us + MONTH_S * 1_000_000)


def add(totals: Totals, settlement: Settlement, sign: int = 1) -> None:
    """Add a request, or with sign -1 take it out."""
    found = details_of(settlement.request)
    details = {key_id(detail): detail for detail in found}
    totals.values.update(details)
    together = None
    if (whole := set_of(found)) is not None:
        together = key_id(whole)
        totals.values[together] = whole
    for quarter_us, key, sums in contributions(settlement):
        number = key_id(key)
        totals.keys[number] = key
        signed = sums if sign == 1 else [-value for value in sums]
        _merge(totals.quarters, (quarter_us, number), signed)
        if details:
            half_us = bucket_us(HALF_S, quarter_us)
            for detail in details:
                _merge(totals.details, (half_us, detail, number), signed)
            if together is not None:
                day_us = bucket_us(DAY_S, quarter_us)
                _merge(totals.sets, (day_us, together, number), signed)


def by_span(
    found: Mapping[_At, Sums], spans_s: Sequence[int] = SPANS_S
) -> dict[tuple[int, ...], Sums]:
    """The same sums by (span, bucket, *ids) for all of the spans; what cancels out is left out.

    Args:
        found: by (unix microseconds, *ids).
    """
    spans: dict[tuple[int, ...], Sums] = {}
    for (at_us, *ids), sums in found.items():
        if any(sums):
            for span_s in spans_s:
                _merge(spans, (span_s, bucket_us(span_s, at_us), *ids), sums)
    return spans


def details_by_span(totals: Totals) -> dict[tuple[int, ...], Sums]:
    """Details and sets by (span, bucket, id of the detail, id of the key)."""
    return by_span(totals.details, DETAIL_SPANS_S) | by_span(totals.sets, SET_SPANS_S)


def _merge(into: dict[_At, Sums], at: _At, sums: Sums) -> None:
    found = into.get(at)
    into[at] = sums if found is None else list(map(operator.add, found, sums))
