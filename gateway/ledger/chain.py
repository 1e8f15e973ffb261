"""The audit chain: a hash over every row and the link before it, so that no row changes unseen.

Hashed is what money depends on. Tags, reasons and attempts are left out: they may hold personal
data, which deleting a customer's data removes, and the chain must stay valid. Times are hashed as
unix microseconds and `team` and `user` as the random ids that the rows hold.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import insert, select, text

from gateway.ledger import state
from gateway.ledger.records import ChargeRecord, RequestRecord, Settlement
from gateway.ledger.rows import to_us
from gateway.ledger.tables import chain

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_LOCK = 4_867_165_323
FIRST = "0" * 64
"""Before the first link."""
_encode = msgspec.json.Encoder(order="sorted").encode


Row = RequestRecord | ChargeRecord


def link(before: str, row: Row) -> str:
    """The hash of a row after the link `before`."""
    kind, hashed = (
        ("charge", _of_charge(row))
        if isinstance(row, ChargeRecord)
        else (
            "request",
            _of_request(row),
        )
    )
    return hashlib.sha256(before.encode() + kind.encode() + _encode(hashed)).hexdigest()


def _of_request(r: RequestRecord) -> tuple[Any, ...]:
    return (
        *(r.request_id, r.team, r.key, r.user, r.model, to_us(r.started_at), r.outcome, r.status),
        *(r.cache, r.policy, r.policy_sha256, r.rule, r.backend, r.backend_model),
        *(r.prompt_tokens, r.cached_prompt_tokens, r.completion_tokens),
        *(r.cost_nano_usd, r.saved_nano_usd),
    )


def _of_charge(c: ChargeRecord) -> tuple[Any, ...]:
    return (
        *(c.request_id, c.seq, c.kind, c.backend, c.machine, c.machine_type, to_us(c.at)),
        *(c.prompt_tokens, c.cached_prompt_tokens, c.completion_tokens),
        *(c.prefill_ns, c.decode_ns, c.speculation_ns, c.recompute_ns, c.machine_ns),
        *(sorted(c.unit_prices.items()), c.cost_nano_usd, c.reverses_seq),
    )


def name(request_id: str, seq: int | None) -> str:
    """A link's row, for people."""
    of = f"request {request_id!r}"
    return of if seq is None else f"charge {seq} of {of}"


async def extend(
    connection: "AsyncConnection", written: Sequence[Settlement], *, requests: Collection[str]
) -> None:
    """Chain rows that the caller's transaction wrote, as its last act: others wait here.

    Args:
        requests: ids of those whose request rows are new too.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    head = (await connection.execute(_HEAD)).first()
    n, last = (head.n, head.sha256) if head is not None else (0, FIRST)
    if not await state.read(connection, "chained_from"):
        await state.write(connection, "chained_from", max(map(_ended_us, written)))
    rows = []
    for one in written:
        for row in _rows(one, new=one.request.request_id in requests):
            n, last = n + 1, link(last, row)
            seq = row.seq if isinstance(row, ChargeRecord) else None
            rows.append({"n": n, "request_id": row.request_id, "seq": seq, "sha256": last})
    await connection.execute(insert(chain), rows)


def _ended_us(one: Settlement) -> int:
    request = one.request
    return to_us(request.started_at + request.duration_ms / 1000) + 1


def _rows(one: Settlement, *, new: bool) -> Iterator[Row]:
    if new:
        yield one.request
    yield from one.charges


_HEAD = select(chain.c.n, chain.c.sha256).order_by(chain.c.n.desc()).limit(1)
