"""Rows of the ledger as structs: what the pipeline hands over, the journal keeps, SQL stores."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct, field, to_builtins

Outcome = Literal["ok", "error", "cancelled", "denied", "refused"]
CacheVerdict = Literal["miss", "exact", "semantic", "off"]
ChargeKind = Literal[
    "answer", "rung", "judge", "hedge", "retry", "shadow", "encoder", "audit", "reversal"
]
FIRST_CORRECTION = 10_000
"""Charges from this seq on correct others: above all that serving a request can book."""


class CandidateRecord(Struct, frozen=True, kw_only=True):
    """A backend that could have answered, with what was expected of it."""

    backend: str
    cost_nano_usd: int | None = None
    quality: float | None = None
    latency_ms: float | None = None


class DecidedOn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the policy was told of a request, beside the columns: with them it can decide again."""

    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    max_tokens: int | None = None
    """As requested."""
    prompt_tokens_bound: int = 0
    prompt_tokens_exact: dict[str, int] = field(default_factory=dict)
    allowed: tuple[str, ...] | None = None
    """Backends that the requested model named; None: all."""
    budget_left: float = 1.0
    quality: dict[str, float] = field(default_factory=dict)
    """Predicted, by backend."""
    loads: dict[str, float] = field(default_factory=dict)
    """Of every backend that there was."""
    down: tuple[str, ...] = ()
    """Backends that were not ready."""
    warm: tuple[str, int] | None = None
    """Who answered the conversation's turn before, and how many tokens that left there."""
    explored: str | None = None
    """The rule that decided, where chance then took another backend."""
    second_look: str | None = None
    """used, late or failed: what came of asking the encoder; None: it was not asked."""


class Verdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a cascade's answer."""

    judge: str
    """Empty: the last rung's is not judged."""
    p_good: float | None = None
    """None: the judge had nothing to go by."""
    gain: float | None = None
    """How much likelier a rung above was thought to be good; None: not known."""
    accepted: bool
    why: str = ""


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One try of one backend."""

    backend: str
    ms: float
    error: str | None = None
    verdict: Verdict | None = None
    """Of a cascade's rung that answered."""


def verdicts_shown(attempts: Sequence[AttemptRecord]) -> str:
    """Rungs and what became of them, for a header: `nano=0.310, small=0.870`."""
    shown = []
    for attempt in attempts:
        if attempt.verdict is None:
            shown.append(f"{attempt.backend}=failed")
        elif attempt.verdict.p_good is None:
            shown.append(f"{attempt.backend}={'unjudged' if attempt.verdict.accepted else '?'}")
        else:
            shown.append(f"{attempt.backend}={attempt.verdict.p_good:.3f}")
    return ", ".join(shown)


class RequestRecord(Struct, frozen=True, kw_only=True):
    """One row of `requests`. No prompt, no answer."""

    request_id: str
    endpoint: str
    """chat/completions, completions or embeddings."""
    model: str
    """As requested."""
    team: str = "anonymous"
    key: str = "anonymous"
    """The key's id, never the key."""
    user: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    started_at: float
    """Unix seconds."""
    duration_ms: float
    ttft_ms: float | None = None
    stream: bool = False
    outcome: Outcome
    status: int
    """HTTP status sent."""
    error_code: str | None = None
    cache: CacheVerdict = "off"
    similarity: float | None = None
    policy: str = ""
    policy_sha256: str = ""
    rule: str = ""
    head: str = ""
    task: str = ""
    difficulty: float | None = None
    language: str = ""
    prompt_tokens_estimate: int = 0
    turns: int = 0
    backend: str | None = None
    """Who answered (for a hit: who wrote the entry)."""
    backend_model: str | None = None
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    candidates: tuple[CandidateRecord, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    reasons: tuple[tuple[str, bool, str], ...] = ()
    """(subject, matched, why) of the decision, in order."""
    decided_on: DecidedOn | None = None
    """None: no policy was asked."""
    draw: float = 0.0
    probability: float = 1.0
    """With which the answering backend was chosen."""
    cost_nano_usd: int = 0
    """Sum of the request's charges."""
    saved_nano_usd: int = 0
    """What a reused answer would have cost now."""
    reuses: str | None = None
    """The request whose answer, and so whose charges, a cache hit reused."""
    worker: str = ""
    """The gateway process that answered; where none stands, the ledger fills in its own."""


class ChargeRecord(Struct, frozen=True, kw_only=True):
    """One row of `charges`, unique by (request_id, seq). Never changed; corrected by reversal."""

    request_id: str
    seq: int
    kind: ChargeKind
    backend: str
    machine: str | None = None
    machine_type: str | None = None
    at: float
    """Unix seconds."""
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    speculation_ns: int = 0
    recompute_ns: int = 0
    machine_ns: int = 0
    unit_prices: dict[str, str] = field(default_factory=dict)
    """Decimal strings: usd_per_hour, or input_usd_per_mtok and so on."""
    cost_nano_usd: int = 0
    reverses_seq: int | None = None


class Settlement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request with its charges: one line of the journal, one unit of idempotent writing."""

    request: RequestRecord
    charges: tuple[ChargeRecord, ...] = ()
    heeded_us: int | None = None
    """When the youngest budget was made that its process knew; those made later count it when it
    is written. None: budgets have nothing to count here."""

    def shown(self) -> dict[str, Any]:
        """As GET /requests/{id} says it: both fields always, also of what cost nothing."""
        shown: dict[str, Any] = to_builtins({"request": self.request, "charges": self.charges})
        return shown
