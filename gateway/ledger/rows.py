"""The ledger's structs as rows of SQL and back. Hot: one call per request, so no dict, no ORM."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.ledger.records import (
    AttemptRecord,
    CandidateRecord,
    ChargeRecord,
    DecidedOn,
    RequestRecord,
    Settlement,
)

Row = tuple[Any, ...]

_encode = msgspec.json.Encoder().encode
_TIMES = {"started_us": "started_at", "at_us": "at"}
REQUEST_COLUMNS = tuple(
    "started_us" if name == "started_at" else name for name in RequestRecord.__struct_fields__
)
CHARGE_COLUMNS = tuple("at_us" if name == "at" else name for name in ChargeRecord.__struct_fields__)
_KINDS: dict[str, Any] = {
    "tags": dict[str, str],
    "candidates": tuple[CandidateRecord, ...],
    "attempts": tuple[AttemptRecord, ...],
    "reasons": tuple[tuple[str, bool, str], ...],
    "decided_on": DecidedOn | None,
    "unit_prices": dict[str, str],
}


def to_us(unix_s: float) -> int:
    """Unix seconds as unix microseconds."""
    return round(unix_s * 1_000_000)


def _json(value: Any) -> str:
    return _encode(value).decode() if value else ("{}" if isinstance(value, dict) else "[]")


def request_row(r: RequestRecord) -> Row:
    """Values in the order of REQUEST_COLUMNS."""
    return (
        r.request_id,
        r.endpoint,
        r.model,
        r.team,
        r.key,
        r.user,
        _json(r.tags),
        to_us(r.started_at),
        r.duration_ms,
        r.ttft_ms,
        r.stream,
        r.outcome,
        r.status,
        r.error_code,
        r.cache,
        r.similarity,
        r.policy,
        r.policy_sha256,
        r.rule,
        r.head,
        r.task,
        r.difficulty,
        r.language,
        r.prompt_tokens_estimate,
        r.turns,
        r.backend,
        r.backend_model,
        r.prompt_tokens,
        r.cached_prompt_tokens,
        r.completion_tokens,
        _json(r.candidates),
        _json(r.attempts),
        _json(r.reasons),
        None if r.decided_on is None else _encode(r.decided_on).decode(),
        r.draw,
        r.probability,
        r.cost_nano_usd,
        r.saved_nano_usd,
        r.reuses,
        r.worker,
    )


def charge_row(c: ChargeRecord) -> Row:
    """Values in the order of CHARGE_COLUMNS."""
    return (
        c.request_id,
        c.seq,
        c.kind,
        c.backend,
        c.machine,
        c.machine_type,
        to_us(c.at),
        c.prompt_tokens,
        c.cached_prompt_tokens,
        c.completion_tokens,
        c.prefill_ns,
        c.decode_ns,
        c.speculation_ns,
        c.recompute_ns,
        c.machine_ns,
        _json(c.unit_prices),
        c.cost_nano_usd,
        c.reverses_seq,
    )


def settlement_of(request: Sequence[Any], charge_rows: Sequence[Sequence[Any]]) -> Settlement:
    """A request's row and its charges' rows, in the columns' order, as they were handed over."""
    return Settlement(
        request=_struct(RequestRecord, REQUEST_COLUMNS, request),
        charges=tuple(_struct(ChargeRecord, CHARGE_COLUMNS, row) for row in charge_rows),
    )


def _struct(kind: Any, columns: tuple[str, ...], row: Sequence[Any]) -> Any:
    values = dict(zip(columns, row, strict=True))
    for column, field in _TIMES.items():
        if column in values:
            values[field] = values.pop(column) / 1_000_000
    for column, wanted in _KINDS.items():
        if column in values:
            found = values[column]
            if isinstance(found, str | bytes):
                values[column] = msgspec.json.decode(found, type=wanted)
            else:
                values[column] = msgspec.convert(found, wanted)
    return kind(**values)


def without_nul(settlement: Settlement) -> Settlement:
    """PostgreSQL's text cannot hold U+0000; it becomes U+FFFD."""
    text = _encode(settlement).replace(b"\\u0000", b"\\ufffd")
    return msgspec.json.decode(text, type=Settlement)
