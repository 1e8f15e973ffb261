"""headgate.toml's tables as frozen structs, each key with its default and its meaning."""

from decimal import Decimal
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from backends.tools.formats import ToolCallParser
from gateway.alerts.settings import AlertSettings
from gateway.ledger.outside_prices import OutsidePrice, find_price
from gateway.settings.failure import FailureSettings
from gateway.settings.prices import MachineSettings, PriceSettings
from gateway.settings.reports import ReportSettings

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: immutable, unknown keys refused."""


class ServerSettings(_Table, frozen=True, kw_only=True):
    """[server]"""

    host: str = "127.0.0.1"
    """Another address than loopback needs auth = "keys"."""
    port: Port = 8080
    """0 picks a free one."""
    workers: Positive = 1
    """Gateway processes sharing the port."""
    auth: Literal["open", "keys"] = "open"
    """open: loopback only, keys are still honoured when sent. keys: all but health needs one."""
    unknown_fields: Literal["refuse", "drop"] = "refuse"
    """What to do with request fields that nobody knows; dropped ones stand in a header."""
    max_body_bytes: Positive = 33_554_432
    """Larger request bodies are refused."""
    drain_timeout_s: Seconds = 30.0
    """How long running requests may finish after SIGTERM."""
    admin_key_env: str | None = None
    """Environment variable with a key that may do everything."""
    admin_key_file: str | None = None
    """File with a key that may do everything."""
    cors_origins: list[str] = field(default_factory=list)
    """Web pages of these origins may ask from a browser; `*`: all."""
    trusted_proxies: list[str] = field(default_factory=list)
    """Addresses or CIDR blocks whose X-Forwarded-For is believed (keys' networks, audit log)."""


class DatabaseSettings(_Table, frozen=True, kw_only=True):
    """[database]"""

    url: str = "sqlite"
    """sqlite (a file in the state folder), sqlite+aiosqlite:///path or postgresql+asyncpg://…"""
    batch_size: Positive = 2048
    """Most settlements written in one transaction."""
    flush_interval_s: Seconds = 0.5
    """Longest a settlement waits for its batch (it is in the journal meanwhile)."""
    on_ledger_outage: Literal["serve", "refuse"] = "serve"
    """With the database away: serve and keep rows in the journal, or answer 503."""
    audit_chain: bool = False
    """Chain all rows by hashes, which `headgate db check` verifies."""
    retention_days: Positive | None = None
    """Requests and charges older than this are removed; roll-ups stay. None: kept for ever."""


class ExactSettings(_Table, frozen=True, kw_only=True):
    """[cache.exact]"""

    enabled: bool = True
    sampled: bool = False
    """Also answer requests drawn at temperature > 0 without a seed."""
    ttl_s: Seconds = 86_400
    max_value_bytes: Positive = 1_048_576
    """Larger answers are not stored."""


class SemanticSettings(_Table, frozen=True, kw_only=True):
    """[cache.semantic]"""

    enabled: bool = False
    threshold: Fraction = 0.93
    """Cosine from which another wording counts as the same question."""
    encoder: str = "bundled:minilm"
    """bundled:minilm (supervised even if not listed) or a backend of kind encoder."""
    ttl_s: Seconds = 86_400
    timeout_s: Seconds = 0.25
    """A later encoder is a miss."""
    max_entries: Positive = 50_000
    """Per namespace; the oldest go first."""
    guard: bool = True
    """Refuse matches that differ in numbers, negation, antonyms or names."""


class CacheSettings(_Table, frozen=True, kw_only=True):
    """[cache]"""

    redis: str = "auto"
    """auto: a private redis-server child; redis://… or unix://…; memory: in each worker."""
    max_memory_bytes: Positive = 268_435_456
    """Bound of the private Redis, and of the memory store."""
    timeout_s: Seconds = 0.25
    """A slower Redis counts as gone."""
    exact: ExactSettings = field(default_factory=ExactSettings)
    semantic: SemanticSettings = field(default_factory=SemanticSettings)


class LimitSettings(_Table, frozen=True, kw_only=True):
    """[limits]"""

    on_redis_outage: Literal["divide", "refuse"] = "divide"
    """divide: each process goes on with its share of the rate limits. refuse: 503."""
    queue_timeout_s: Seconds = 30.0
    """Longest a request waits for a saturated backend before the next one is tried."""


class BatchSettings(_Table, frozen=True, kw_only=True):
    """[batches]"""

    enabled: bool = True
    """Whether /v1/files and /v1/batches take anything: what is uploaded is stored."""
    concurrency: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Lines of a batch that are answered at once, as far as others leave room."""
    keep_days: Annotated[float, Meta(gt=0)] = 30.0
    """After that files and batches go."""


class RoutingSettings(_Table, frozen=True, kw_only=True):
    """[routing]"""

    policy: str = "default"
    """Searched in policy_dirs, then among the shipped ones; reloaded when it changes."""
    policy_dirs: list[str] = field(default_factory=lambda: ["policies"])
    head: str | None = None
    """Folder of a classifier head made by `policy fit`; None: the shipped one."""
    explore: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Share of requests for which chance, not the policy, picks among the candidates."""
    conversation_s: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    """How long a turn's backend is remembered, for policies that count what its prefix cache saves:
    about as long as that cache lasts. 0: not at all."""
    second_look: Literal["always", "unsure", "never"] = "unsure"
    """For policies that say nothing: whether the encoder is asked for qualities, too, where the
    head has a second stage (`policy fit` makes it). Without `[cache.semantic]` there is an encoder
    only if one is listed."""
    second_look_timeout_s: Seconds = 0.05
    """Later vectors are not waited for: the first head decides alone."""
    second_look_min_gap_usd: Decimal = Decimal("0.0001")
    """Between the dearest and the cheapest candidate's expected answers, from which it pays to look
    again where the head is unsure."""


class EngineSettings(_Table, frozen=True, kw_only=True):
    """[backends.engine]: vLLM's flags in snake_case."""

    max_model_len: Positive | None = None
    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    gpu_memory_utilization: Fraction | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"] | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    tensor_parallel_size: Positive | None = None
    num_blocks: Positive | None = None
    """KV blocks; None: sized from memory."""
    block_size: Positive | None = None
    """Tokens in a KV block."""
    deterministic: bool | None = None
    """Answers with the same bits whatever else is in the batch, or no start."""
    threads: Positive | None = None
    """CPU threads of this engine; None: shared fairly among the machine's engines."""
    generation_config: Literal["auto", "vllm"] | None = None
    """Sampling defaults: the model's generation_config.json (auto, the default) or OpenAI's."""
    tool_call_parser: ToolCallParser | None = None
    """How the model writes calls of functions: as its chat template says (auto), or as vLLM's
    parser of that name reads them."""
    reasoning_parser: Literal["auto", "none", "deepseek_r1", "mistral", "qwen3"] | None = None
    """How the model sets its thoughts apart: as its chat template says (auto), as vLLM's parser of
    that name reads them, or not at all."""


class SpeculationSettings(_Table, frozen=True, kw_only=True):
    """[backends.speculation]"""

    method: Literal["auto", "off", "ngram", "draft"] = "auto"
    draft_model: str | None = None
    """A smaller model with the same tokenizer, for `draft` and `auto`."""
    num_tokens: Positive | None = None
    """Most tokens drafted ahead."""


class BackendSettings(_Table, frozen=True, kw_only=True):
    """[[backends]]"""

    name: str
    kind: Literal["engine", "openai", "encoder", "echo"] = "engine"
    model: str
    """bundled:NAME, a folder, a .gguf file or hf:owner/name; for openai the upstream's name; with
    `lora_of` the adapter's folder, as PEFT saves it."""
    lora_of: str | None = None
    """The backend of kind engine whose process serves this LoRA adapter of its model."""
    tier: str | None = None
    """A size class; None: the backend's own name."""
    machine: str | None = None
    """None: the implicit machine "local", unless the backend has a price."""
    quantization: Literal["int8", "int4", "fp8", "none"] | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)
    replicas: Positive = 1
    """Processes of an engine on its machine, each with weights and a prefix cache of its own;
    chosen among as `base_urls` are."""
    base_urls: list[str] = field(default_factory=list)
    """Replicas; the one that has a prompt's prefix warm is asked, else the least busy."""
    api_key_env: str | None = None
    api_key_file: str | None = None
    context_tokens: Positive | None = None
    accepts: list[str] = field(default_factory=list)
    """Capability fields it honours: tools, response_format, …; also fields of its own, which are
    passed on to it as they are: guided_json, …"""
    timeout_s: Seconds = 600.0
    max_concurrency: Positive = 256
    max_queue: Positive = 1024
    """Requests that may wait for a place there, over all gateway processes; more go on to the
    next backend of their chain."""
    queue_timeout_s: Seconds | None = None
    """Longest wait for a place; None: as in [limits]."""
    tokenizer: str | None = None
    """Folder or bundled:NAME whose tokenizer counts this backend's prompts exactly."""
    price: PriceSettings | None = None


class Settings(_Table, frozen=True, kw_only=True):
    """All of headgate.toml."""

    server: ServerSettings = field(default_factory=ServerSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    batches: BatchSettings = field(default_factory=BatchSettings)
    failure: FailureSettings = field(default_factory=FailureSettings)
    reports: ReportSettings = field(default_factory=ReportSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    models: dict[str, str] = field(default_factory=dict)
    """Aliases: requested name → model."""
    machines: list[MachineSettings] = field(default_factory=list)
    backends: list[BackendSettings] = field(default_factory=list)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    state_dir: str = ""
    """Folder of database, journal, cache dump; filled in by load()."""
    source: str = ""
    """The file this came from; empty: built-in. Filled in by load()."""

    def machine(self, backend: BackendSettings) -> MachineSettings | None:
        """The machine a backend runs on; None for one with a price of its own."""
        if backend.machine is None and backend.price is not None:
            return None
        name = backend.machine or "local"
        for machine in self.machines:
            if machine.name == name:
                return machine
        return MachineSettings(name=name)

    def outside_price(self, name: str | None = None) -> OutsidePrice:
        """A price that reports measure against, by name or in full; None: that of [reports].

        Raises:
            ReportError: there is none of that name.
        """
        priced = {b.name: b.price for b in self.backends if b.price is not None}
        return find_price(name or self.reports.against, own=self.reports.prices, backends=priced)

    def targets(self) -> dict[str, frozenset[str]]:
        """What policies can name: backends and their tiers, with the backends behind each."""
        found: dict[str, frozenset[str]] = {}
        for b in self.backends:
            for name in filter(None, {b.name, b.tier}):
                found[name] = found.get(name, frozenset()) | {b.name}
        return found

    def capabilities(self) -> frozenset[str]:
        """Fields of requests that some backend accepts."""
        return frozenset(name for backend in self.backends for name in backend.accepts)

    def backend(self, name: str) -> BackendSettings:
        """The backend called `name`; KeyError if there is none."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise KeyError(name)


BUILT_IN = Settings(
    cache=CacheSettings(exact=ExactSettings(sampled=True), semantic=SemanticSettings(enabled=True)),
    machines=[MachineSettings(name="local")],
    backends=[
        BackendSettings(name="nano", model="bundled:nano", tier="nano"),
        BackendSettings(
            name="small",
            model="bundled:small",
            tier="small",
            speculation=SpeculationSettings(draft_model="bundled:nano"),
        ),
        BackendSettings(
            name="base",
            model="bundled:base",
            tier="base",
            speculation=SpeculationSettings(draft_model="bundled:nano"),
        ),
    ],
)
"""What runs without a config file: the bundled models, nothing to download."""
