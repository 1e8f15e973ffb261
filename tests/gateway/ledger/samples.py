"""Rows to write, all fields filled."""

from typing import Any

import msgspec

from gateway.ledger.records import (
    AttemptRecord,
    CandidateRecord,
    ChargeRecord,
    RequestRecord,
    Settlement,
)

NOW = 1_795_262_400.25
"""2026-11-21 12:00:00.25 UTC; exact in microseconds."""


def charge(request_id: str, seq: int = 0, **fields: Any) -> ChargeRecord:
    """A charge of a machine paid by the hour."""
    given: dict[str, Any] = {
        "kind": "answer",
        "backend": "small",
        "machine": "local",
        "machine_type": "cpu",
        "at": NOW,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prefill_ns": 1_000,
        "decode_ns": 2_000,
        "machine_ns": 3_000,
        "unit_prices": {"usd_per_hour": "0.10"},
        "cost_nano_usd": 1_000,
    }
    return ChargeRecord(request_id=request_id, seq=seq, **{**given, **fields})


def settlement(
    request_id: str,
    *,
    charges: tuple[ChargeRecord, ...] | None = None,
    heeded_us: int | None = None,
    **fields: Any,
) -> Settlement:
    """A request; with one charge of 1000 nano-dollars unless told otherwise."""
    if charges is None:
        charges = (charge(request_id),)
    given: dict[str, Any] = {
        "endpoint": "chat/completions",
        "model": "auto",
        "team": "search",
        "key": "key_1",
        "user": "ann",
        "tags": {"env": "prod", "feature": "faq"},
        "started_at": NOW,
        "duration_ms": 12.5,
        "ttft_ms": 3.25,
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "cache": "miss",
        "policy": "default",
        "policy_sha256": "ab" * 32,
        "rule": "hard-maths",
        "head": "v1",
        "task": "maths",
        "difficulty": 0.75,
        "language": "en",
        "prompt_tokens_estimate": 99,
        "turns": 1,
        "backend": "small",
        "backend_model": "bundled:small",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "candidates": (CandidateRecord(backend="small", cost_nano_usd=5, quality=0.5),),
        "attempts": (AttemptRecord(backend="small", ms=12.0),),
        "reasons": (("rule hard-maths", True, "difficulty 0.75 in [0.5, ∞)"),),
        "draw": 0.25,
        "cost_nano_usd": sum(one.cost_nano_usd for one in charges),
    }
    request = RequestRecord(request_id=request_id, **{**given, **fields})
    return Settlement(request=request, charges=charges, heeded_us=heeded_us)


def renamed(template: Settlement, request_id: str) -> Settlement:
    """The same settlement of another request."""
    replace = msgspec.structs.replace
    return Settlement(
        request=replace(template.request, request_id=request_id),
        charges=tuple(replace(one, request_id=request_id) for one in template.charges),
    )
