"""The types of a routing policy and of what it decides on. stdlib and msgspec only, no I/O.

A policy file (`policies/NAME.toml`) decodes into `Policy`. Deciding takes `Facts` about one
request, `BackendCard`s of what can answer, the `BudgetState`, the time and one `draw`, and gives a
`Decision` with its reasons.
"""

from typing import Literal

from msgspec import Struct, field

Task = Literal[
    "chat",
    "knowledge",
    "code",
    "maths",
    "extraction",
    "summarisation",
    "creative",
    "classification",
]
CacheRule = Literal["off", "exact", "semantic"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class _Frozen(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a policy file's tables: immutable, and a misspelt key is an error."""


class Range(_Frozen, frozen=True, kw_only=True):
    """A range of numbers; min is inclusive, max exclusive."""

    min: float | None = None
    max: float | None = None


class BackendRange(_Frozen, frozen=True, kw_only=True):
    """A range of one backend's figure."""

    backend: str
    """A backend or a tier (any of its backends)."""
    min: float | None = None
    max: float | None = None


class Hours(_Frozen, frozen=True, kw_only=True):
    """A daily window; `to` before `from` passes midnight."""

    from_: str = field(name="from")
    """HH:MM"""
    to: str
    """HH:MM, exclusive"""
    tz: str = "UTC"
    """IANA name"""
    days: list[Day] | None = None
    """The days on which the window begins; None: every day."""


class When(_Frozen, frozen=True, kw_only=True):
    """Conditions; all that are given must hold."""

    task: list[Task] | None = None
    team: list[str] | None = None
    key: list[str] | None = None
    user: list[str] | None = None
    model: list[str] | None = None
    """The model as requested."""
    language: list[str] | None = None
    """ISO 639-1 codes."""
    difficulty: Range | None = None
    prompt_tokens: Range | None = None
    """The gateway's estimate."""
    turns: Range | None = None
    """User messages in the conversation."""
    budget_left: Range | None = None
    """Fraction left of the tightest budget; 1 without one."""
    load: BackendRange | None = None
    """(queued + running) ÷ capacity."""
    quality: BackendRange | None = None
    """P(the backend answers well)."""
    tags: dict[str, list[str]] | None = None
    wants: list[Literal["json", "tools", "logprobs"]] | None = None
    hours: Hours | None = None


class Objective(_Frozen, frozen=True, kw_only=True):
    """What to aim at where predictions, not names, choose the backend."""

    minimise: Literal["cost"] | None = None
    """The cheapest backend whose predicted quality is at least `min_quality`."""
    maximise: Literal["quality"] | None = None
    """The greatest quality − lambda_cost_usd·cost − mu_latency_s·latency within `max_cost_usd`."""
    min_quality: float | None = None
    max_cost_usd: float | None = None
    """The most that one answer may be expected to cost, or all answers of a day."""
    per: Literal["request", "day"] = "request"
    """What `max_cost_usd` is for; a day's money (UTC) is paced over the requests still expected."""
    lambda_cost_usd: float = 0.0
    """Quality that one dollar must buy."""
    mu_latency_s: float = 0.0
    """Quality that one second must buy."""
    among: list[str] = field(default_factory=lambda: ["*"])
    """Tiers or backends to choose from."""


class Accept(_Frozen, frozen=True, kw_only=True):
    """When a cascade's answer stands."""

    judge: str = "answer"
    """answer (all that its tokens' probabilities say, and what the question promised), logprob,
    margin, entropy, consistency (with further answers), format, or backend:NAME (a model that is
    asked)."""
    min: float = 0.7
    """P(good) from which an answer is accepted; the last rung's always is."""
    min_gain: float = -1.0
    """An answer below `min` stands all the same where no rung above is likelier to be good by this
    much, as far as the judge is calibrated for both."""
    n: int = 3
    """Answers that `consistency` compares, the one that is judged included."""
    skip_gain: float = 1.0
    """A rung is not asked where the question alone says that one above is likelier to answer well
    by this much."""
    lambda_cost_usd: float = 0.0
    """Quality that a dollar is worth: what a rung above gains counts less this much times what its
    answer will probably cost; `min_gain` is about what is left."""
    skip_lambda_cost_usd: float | None = None
    """A rung is not asked where the question alone says that one above is likelier to answer well
    by this much a dollar that it costs more."""
    predict: bool = True
    """Send a rejected answer along as a draft, where the next rung can verify it."""
    restart: bool = True
    """Clients that ask for it may see answers before they are judged."""


class Hedge(_Frozen, frozen=True, kw_only=True):
    """When a second backend is asked beside a slow one: the first to answer wins, both are paid."""

    percentile: float = 0.95
    """Of the first one's latest times to an answer (of a stream: to its first token)."""
    max_prompt_tokens: int = 512
    """Longer requests are not hedged: their second call would cost too much."""
    max_answer_tokens: int = 256
    """As asked for by max_tokens; requests without one are not hedged."""
    min_wait_s: float = 0.01
    """Before which no second call is made."""


class Route(_Frozen, frozen=True, kw_only=True):
    """What a rule, or the default, does: exactly one action, and the fields beside it."""

    route: str | None = None
    """A tier or a backend."""
    split: dict[str, float] | None = None
    """Weights by tier or backend, drawn by a hash of the sticky id."""
    cascade: list[str] | None = None
    """Tiers or backends that answer one after another until `accept` is content."""
    accept: Accept | None = None
    """Beside cascade; None: as if it were empty."""
    objective: Objective | None = None
    """Chosen by predicted quality, cost and latency."""
    deny: str | None = None
    """The reason given to the client."""
    fallbacks: list[str] = field(default_factory=list)
    """Tiers or backends to try next, in order; "*" stands for all the others."""
    max_tokens: int | None = None
    """Caps the answer."""
    cache: CacheRule | None = None
    """The most that may be used of the caches."""
    shadow: str | None = None
    """A tier or backend that gets a copy."""
    retries: int | None = None
    """How often each backend is asked again when it fails, before the next one is; None: as
    configured."""
    hedge: Hedge | None = None
    """Ask a second backend where the first takes long."""
    restart: bool = False
    """A stream that broke off may begin again on the next backend, for clients that send
    x-headgate-accept-restart: 1."""


class Rule(Route, frozen=True, kw_only=True):
    """One entry of `[[rules]]`; the first whose `when` holds decides."""

    name: str
    when: When = field(default_factory=When)


class Sticky(_Frozen, frozen=True, kw_only=True):
    """When a conversation stays with the backend that has its prefix warm."""

    min_gain: float = 0.05
    """Predicted quality that moving must add; or it costs less and loses less than this."""
    headroom: float = 2.0
    """A smaller window must hold the conversation this many times."""


class Policy(_Frozen, frozen=True, kw_only=True):
    """A policy file."""

    description: str = ""
    sticky: Sticky | None = None
    """None: each turn is decided as if it were the first."""
    second_look: Literal["always", "unsure", "never"] | None = None
    """Whether the sentence encoder is asked, too, for predicted qualities: always, or where the
    first head is unsure and the candidates' prices lie far apart. None: as configured."""
    rules: list[Rule] = field(default_factory=list)
    default: Route


class RequestFeatures(Struct, frozen=True, kw_only=True):
    """What the classifier says of a request's content; no text."""

    task: Task
    task_confidence: float = 1.0
    difficulty: float
    """1 − P(the head's reference backend answers well)."""
    language: str = "en"
    prompt_tokens: int
    """The gateway's estimate."""
    turns: int = 1
    wants: frozenset[str] = frozenset()
    """Of json, tools, logprobs."""
    quality: dict[str, float] = field(default_factory=dict)
    """P(answers well) by backend, where the head knows it."""
    head: str = ""
    """Version of the classifier's head."""


class Estimate(Struct, frozen=True, kw_only=True):
    """What one backend's answer to one request will probably take."""

    cost_nano_usd: int | None = None
    latency_s: float | None = None
    """Until the last token, at the backend's load now."""
    answer_tokens: float = 0.0
    """The median; nine of ten answers lie between low and high."""
    answer_tokens_low: float = 0.0
    answer_tokens_high: float = 0.0


class Warm(Struct, frozen=True, kw_only=True):
    """Where a conversation's last turn was answered."""

    backend: str
    tokens: int
    """Of prompt and answer then: what may be found cached now."""


class Facts(Struct, frozen=True, kw_only=True):
    """Everything a rule may ask about one request."""

    features: RequestFeatures
    model: str
    """As requested."""
    team: str = "anonymous"
    key: str = "anonymous"
    user: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    """As requested."""
    needs: frozenset[str] = frozenset()
    """Capability fields of the request (tools, response_format, …)."""
    prompt_tokens_bound: int = 0
    """An upper bound of the prompt's tokens, for fit."""
    prompt_tokens_exact: dict[str, int] = field(default_factory=dict)
    """Exact counts by backend, where the bound did not fit and the backend was asked."""
    endpoint: str = "chat/completions"
    """chat/completions, completions or embeddings."""
    allowed: frozenset[str] | None = None
    """Backends that the requested model names; None: all."""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    """By backend; made only for policies with objectives."""
    warm: Warm | None = None
    """None: the first turn, too long ago, or nobody asks."""
    pinned: str | None = None
    """The backend that answers all that it may and can, by an operator's hand."""
    barred: dict[str, str] = field(default_factory=dict)
    """Backends that an operator took out, and why."""


class BackendCard(Struct, frozen=True, kw_only=True):
    """What is known of a backend when deciding."""

    name: str
    tier: str
    model: str
    machine: str = "local"
    accepts: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset({"chat/completions", "completions"})
    """What it can be asked: chat/completions, completions, embeddings."""
    context_tokens: int | None = None
    ready: bool = True
    load: float = 0.0
    """(queued + running) ÷ capacity."""
    revision: str = ""
    """Model revision; part of cache keys."""
    usd_per_mtok: float | None = None
    """A typical price of a million tokens, to order candidates; None: unknown."""


class BudgetState(Struct, frozen=True, kw_only=True):
    """The caller's budgets, reduced to what policies may ask."""

    left: float = 1.0
    """Fraction left of the tightest budget; 1 without one."""
    policy: str | None = None
    """Decides in place of any other: a budget's threshold is passed."""
    day_spent_usd: float = 0.0
    """Expected costs of this policy's requests since midnight UTC."""
    day_requests: int = 0
    """How many those were."""


class Reason(Struct, frozen=True, kw_only=True):
    """Why a rule matched or did not, or why a backend is no candidate."""

    subject: str
    """`rule NAME`, `default` or `backend NAME`."""
    matched: bool
    why: str


class Decision(Struct, frozen=True, kw_only=True):
    """What a policy decided."""

    rule: str
    """Name of the rule, or `default`."""
    candidates: tuple[str, ...]
    """Backends in the order to try; empty when denied or when none is left."""
    rungs: tuple[str, ...] = ()
    """Of a cascade, two or more, the first of the candidates; the other candidates stand in for
    the last one."""
    accept: Accept | None = None
    """When a rung's answer stands."""
    denied: str | None = None
    """The reason for a denial."""
    max_tokens: int | None = None
    cache: CacheRule | None = None
    """The most that may be used of the caches; None: as configured."""
    shadow: str | None = None
    retries: int | None = None
    hedge: Hedge | None = None
    restart: bool = False
    probability: float = 1.0
    """With which the first candidate was chosen (a split's share)."""
    draw: float = 0.0
    reasons: tuple[Reason, ...] = ()
