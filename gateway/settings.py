"""headgate.toml as frozen structs: found, decoded, checked, completed.

`load()` finds the file (argument, $HEADGATE_CONFIG, ./headgate.toml, else the built-in default),
refuses unknown keys and bad values naming file, key path, value and what is allowed, applies the
HEADGATE_* overrides and resolves relative paths against the file's folder.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from gateway.alerts.settings import AlertSettings, check_alerts
from gateway.errors import SettingsError
from gateway.failure_settings import FailureSettings
from gateway.ledger.outside_prices import OutsidePrice, find_price
from gateway.litellm_prices import read_rates
from gateway.price_settings import MachineSettings as MachineSettings
from gateway.price_settings import PriceSettings as PriceSettings
from gateway.price_settings import check_machine, check_price
from gateway.report_settings import ReportSettings as ReportSettings
from gateway.report_settings import check_reports

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
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
    """Capability fields it honours: tools, response_format, …"""
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

_RESERVED = {"auto"}
_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,63}$")
_SQL = re.compile(r"^(sqlite|sqlite\+aiosqlite:///.+|postgresql(\+asyncpg)?://.+)$")
_REDIS = re.compile(r"^(auto|memory|rediss?://.+|unix://.+)$")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Find, read and check the configuration.

    Args:
        path: --config; None looks at $HEADGATE_CONFIG, then ./headgate.toml, then built-in.
        env: the environment; None: os.environ.
        overrides: [server] keys from the command line (host, port, workers); None values skip.

    Raises:
        SettingsError: naming file, key path, value and what is allowed.
    """
    env = os.environ if env is None else env
    file = _find(path, env)
    settings = BUILT_IN if file is None else _read(file)
    where = str(file) if file else "the built-in configuration"
    settings = _override(settings, env, overrides or {}, where)
    base = file.parent.resolve() if file else Path.cwd()
    settings = _resolve(settings, base, _state_dir(env), str(file.resolve()) if file else "")
    check(settings, where)
    return settings


def _find(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Path | None:
    chosen = path or env.get("HEADGATE_CONFIG")
    if chosen:
        file = Path(chosen)
        if not file.is_file():
            raise SettingsError(f"{file}: no such file; pass an existing one with --config")
        return file
    local = Path("headgate.toml")
    return local if local.is_file() else None


def _read(file: Path) -> Settings:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from None
    for key in ("state_dir", "source"):
        if key in tree:
            raise SettingsError(f"{file}: {key}: unknown key; set $HEADGATE_STATE_DIR instead")
    try:
        return msgspec.convert(tree, Settings, dec_hook=_decimal)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), tree, file)) from None


def _decimal(kind: type, value: Any) -> Any:
    if kind is Decimal and isinstance(value, int | float):
        return Decimal(str(value))
    raise NotImplementedError(kind)


def _explain(text: str, tree: dict[str, Any], file: Path) -> str:
    """msgspec's message with key path first and the offending value."""
    found = re.search(r" - at `\$\.?([^`]*)`$", text)
    path = found.group(1) if found else ""
    reason = text[: found.start()] if found else text
    unknown = re.search(r"unknown field `([^`]+)`", reason)
    if unknown:
        key = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return f"{file}: {key}: unknown key; see config.example.toml for all keys"
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"{file}: {path}: {reason}"
    return f"{file}: {path or 'the file'}: {value!r}: {reason}" if path else f"{file}: {reason}"


def _override(
    settings: Settings, env: Mapping[str, str], server: Mapping[str, Any], where: str
) -> Settings:
    changes: dict[str, Any] = {k: v for k, v in server.items() if v is not None}
    if env.get("HEADGATE_HOST"):
        changes.setdefault("host", env["HEADGATE_HOST"])
    if env.get("HEADGATE_PORT"):
        port = env["HEADGATE_PORT"]
        if not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"$HEADGATE_PORT: {port!r}: a port, 0 to 65535")
        changes.setdefault("port", int(port))
    if env.get("HEADGATE_AUTH"):
        if env["HEADGATE_AUTH"] not in ("open", "keys"):
            raise SettingsError(f"$HEADGATE_AUTH: {env['HEADGATE_AUTH']!r}: open or keys")
        changes.setdefault("auth", env["HEADGATE_AUTH"])
    if env.get("HEADGATE_ADMIN_KEY"):
        changes.setdefault("admin_key_env", "HEADGATE_ADMIN_KEY")
    replace = msgspec.structs.replace
    if changes:
        settings = replace(settings, server=replace(settings.server, **changes))
    if env.get("HEADGATE_DATABASE_URL"):
        url = env["HEADGATE_DATABASE_URL"]
        settings = replace(settings, database=replace(settings.database, url=url))
    if env.get("HEADGATE_REDIS_URL"):
        settings = replace(settings, cache=replace(settings.cache, redis=env["HEADGATE_REDIS_URL"]))
    return settings


def _state_dir(env: Mapping[str, str]) -> Path:
    if env.get("HEADGATE_STATE_DIR"):
        return Path(env["HEADGATE_STATE_DIR"]).absolute()
    home = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "headgate"


def _resolve(settings: Settings, base: Path, state_dir: Path, source: str) -> Settings:
    """Relative paths, against the folder of the config file."""
    replace = msgspec.structs.replace

    def path(text: str) -> str:
        return str(base / Path(text).expanduser())

    def model(backend: BackendSettings) -> BackendSettings:
        local = backend.kind in ("engine", "encoder") and not re.match(
            r"^(bundled|hf):", backend.model
        )
        return replace(
            backend,
            model=path(backend.model) if local else backend.model,
            api_key_file=path(backend.api_key_file) if backend.api_key_file else None,
            price=_listed_price(backend, path),
        )

    routing = settings.routing
    dirs = [path(folder) for folder in routing.policy_dirs]
    head = path(routing.head) if routing.head else None
    return replace(
        settings,
        routing=replace(routing, policy_dirs=dirs, head=head),
        backends=[model(backend) for backend in settings.backends] or BUILT_IN.backends,
        machines=settings.machines or BUILT_IN.machines,
        state_dir=str(state_dir),
        source=source,
    )


def _listed_price(backend: BackendSettings, path: Callable[[str], str]) -> PriceSettings | None:
    """The price, its rates out of the list that it names."""
    price = backend.price
    if price is None or price.litellm_file is None:
        return price
    file = path(price.litellm_file)
    rates = read_rates(Path(file), price.litellm_model or backend.model)
    return msgspec.structs.replace(price, **msgspec.structs.asdict(rates), litellm_file=file)


def check(settings: Settings, where: str) -> None:
    """What types alone cannot say. Raises SettingsError."""

    def refuse(key: str, value: Any, allowed: str) -> None:
        raise SettingsError(f"{where}: {key}: {value!r}: {allowed}")

    server = settings.server
    if server.auth == "open" and not _loopback(server.host):
        refuse("server.host", server.host, 'an address beyond loopback needs auth = "keys"')
    for network in server.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            refuse("server.trusted_proxies", network, "an address or CIDR block")
    if not _SQL.match(settings.database.url):
        refuse(
            "database.url",
            settings.database.url.split("@")[-1],
            "sqlite, sqlite+aiosqlite:///path or postgresql+asyncpg://…",
        )
    if not _REDIS.match(settings.cache.redis):
        refuse("cache.redis", settings.cache.redis, "auto, memory, redis://… or unix://…")
    machines = [machine.name for machine in settings.machines]
    for index, machine in enumerate(settings.machines):
        if machines.count(machine.name) > 1:
            refuse(f"machines[{index}].name", machine.name, "each name once")
        check_machine(machine, f"machines[{index}]", refuse)
    prices = {backend.name: backend.price for backend in settings.backends}
    check_reports(settings.reports, machines, prices, refuse)
    check_alerts(settings.alerts, where)
    _check_backends(settings, machines, refuse)


def _check_backends(settings: Settings, machines: list[str], refuse: Any) -> None:
    names = [backend.name for backend in settings.backends]
    tiers = {backend.tier for backend in settings.backends if backend.tier}
    for index, backend in enumerate(settings.backends):
        key = f"backends[{index}]"
        if not _NAME.match(backend.name) or backend.name in _RESERVED:
            refuse(f"{key}.name", backend.name, "a-z, 0-9, _ . -, at most 64, not 'auto'")
        if names.count(backend.name) > 1:
            refuse(f"{key}.name", backend.name, "each name once")
        if backend.name in tiers and backend.tier != backend.name:
            refuse(f"{key}.name", backend.name, "a tier's name only for a backend in that tier")
        if backend.kind == "openai" and not backend.base_urls:
            refuse(f"{key}.base_urls", backend.base_urls, "kind openai needs at least one URL")
        if backend.replicas > 1 and backend.kind != "engine":
            refuse(f"{key}.replicas", backend.replicas, "only of kind engine; list base_urls")
        if backend.lora_of is not None:
            _check_adapter(settings, backend, key, refuse)
        for url in backend.base_urls:
            if not re.match(r"^(https?://|unix:/)", url):
                refuse(f"{key}.base_urls", url, "http://…, https://… or unix:/path")
        if backend.machine not in (None, "local", *machines):
            refuse(f"{key}.machine", backend.machine, f"one of {['local', *machines]}")
        if backend.price is not None:
            check_price(backend.price, f"{key}.price", refuse)
    encoder = settings.cache.semantic.encoder
    if encoder != "bundled:minilm" and encoder not in names:
        refuse("cache.semantic.encoder", encoder, f"bundled:minilm or a backend of {names}")


def _check_adapter(settings: Settings, backend: BackendSettings, key: str, refuse: Any) -> None:
    engines = [b.name for b in settings.backends if b.kind == "engine" and b.lora_of is None]
    if backend.kind != "engine" or backend.lora_of not in engines:
        refuse(f"{key}.lora_of", backend.lora_of, f"for kind engine, one of {engines}")
    if backend.machine != settings.backend(backend.lora_of or "").machine:
        refuse(f"{key}.machine", backend.machine, f"the same as of {backend.lora_of!r}")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def schema() -> dict[str, Any]:
    """The JSON Schema of headgate.toml, for editors and checks elsewhere."""
    document = msgspec.json.schema(Settings)
    settings = document["$defs"]["Settings"]["properties"]
    for filled_in_by_load in ("state_dir", "source"):
        del settings[filled_in_by_load]
    return _money_as_numbers(document)  # type: ignore[no-any-return]


def _money_as_numbers(node: Any) -> Any:
    """TOML has numbers where JSON carries decimals as strings; both are read."""
    if isinstance(node, list):
        return [_money_as_numbers(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "decimal":
        return {**node, "type": ["number", "string"]}
    return {key: _money_as_numbers(value) for key, value in node.items()}
