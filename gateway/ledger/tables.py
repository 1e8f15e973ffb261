"""The ledger's tables, for SQLite and PostgreSQL alike. Migrations read only this file.

Money is BIGINT nano-dollars (`_nano_usd`), points in time are BIGINT unix microseconds (`_us`),
machine time is BIGINT nanoseconds (`_ns`). `requests`, `charges` and `machine_time` are
append-only: a correction is a new row.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

_BIG_ID = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up only an INTEGER primary key."""


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _sums() -> list[Column[int]]:
    counts = ("requests", "errors", "cache_hits_exact", "cache_hits_semantic")
    tokens = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    return [_count(n) for n in (*counts, *tokens, "saved_nano_usd", "cost_nano_usd", "machine_ns")]


def _id(name: str) -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


requests = Table(
    "requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    _text("endpoint"),
    _text("model"),
    Column("team", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("user", Text),
    Column("tags", JSON, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("duration_ms", Float, nullable=False),
    Column("ttft_ms", Float),
    Column("stream", Boolean, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("status", Integer, nullable=False),
    Column("error_code", Text),
    Column("cache", String(16), nullable=False),
    Column("similarity", Float),
    _text("policy"),
    _text("policy_sha256"),
    _text("rule"),
    _text("head"),
    _text("task"),
    Column("difficulty", Float),
    _text("language"),
    _count("prompt_tokens_estimate"),
    _count("turns"),
    Column("backend", Text),
    Column("backend_model", Text),
    _count("prompt_tokens"),
    _count("cached_prompt_tokens"),
    _count("completion_tokens"),
    Column("candidates", JSON, nullable=False),
    Column("attempts", JSON, nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("decided_on", JSON(none_as_null=True)),
    Column("draw", Float, nullable=False),
    Column("probability", Float, nullable=False),
    _count("cost_nano_usd"),
    _count("saved_nano_usd"),
    Column("reuses", String(128)),
    _text("worker"),
    Index(None, "started_us"),
)
"""One row per request, whatever became of it. No prompt, no answer."""

charges = Table(
    "charges",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("backend", Text, nullable=False),
    Column("machine", Text),
    Column("machine_type", Text),
    Column("at_us", BigInteger, nullable=False),
    _count("prompt_tokens"),
    _count("cached_prompt_tokens"),
    _count("completion_tokens"),
    *(_count(f"{work}_ns") for work in ("prefill", "decode", "speculation", "recompute")),
    _count("machine_ns"),
    Column("unit_prices", JSON, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("reverses_seq", Integer),
    Index(None, "at_us"),
)
"""What a request used, one row per piece of work; a correction reverses by a negative row."""

teams = Table(
    "teams",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("weight", Integer, nullable=False, server_default="1"),
    Column("limits", JSON(none_as_null=True)),
)
"""Who pays. weight: of its share when a backend is saturated; limits: per minute, see limits.py."""

users = Table(
    "users",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("team", String(128), nullable=False, index=True),
    Column("created_us", BigInteger, nullable=False),
    Column("limits", JSON(none_as_null=True)),
    Column("removed_us", BigInteger),
)
"""People whom keys may belong to."""

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("previous_sha256", String(64), unique=True),
    Column("previous_expires_us", BigInteger),
    Column("prefix", String(16), nullable=False),
    Column("team", String(128), nullable=False, index=True),
    _text("name"),
    Column("scopes", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
    Column("revoked_us", BigInteger),
    Column("user", String(128), index=True),
    Column("role", String(16)),
    Column("only", JSON(none_as_null=True)),
    Column("limits", JSON(none_as_null=True)),
)
"""Callers' keys. The secret itself is nowhere: 256 random bits need no salt, a digest finds it.
only: the endpoints, models, policies and networks it is restricted to."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    _text("team"),
    Column("action", String(64), nullable=False),
    _text("target"),
    Column("outcome", String(16), nullable=False),
    _text("address"),
    Column("details", JSON, nullable=False),
    Index(None, "at_us"),
)
"""Acts of administration, done, refused and failed; append-only, never a secret."""

budgets = Table(
    "budgets",
    metadata,
    Column("scope", String(160), primary_key=True),
    Column("window", String(32), primary_key=True),
    Column("limit_nano_usd", BigInteger, nullable=False),
    Column("soft", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("tz", String(64), nullable=False, server_default="UTC"),
    Column("alert_percents", JSON(none_as_null=True)),
    Column("downgrade_percent", Integer),
    Column("downgrade_policy", String(128)),
)
"""Limits. scope and window: see budget_store.py and windows.py. From downgrade_percent of the limit
on, downgrade_policy decides in place of any other."""

budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("scope", String(160), primary_key=True),
    Column("window", String(32), primary_key=True),
    Column("window_start_us", BigInteger, primary_key=True, autoincrement=False),
    Column("percent", Integer, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("spent_nano_usd", BigInteger, nullable=False),
    Column("limit_nano_usd", BigInteger, nullable=False),
)
"""Thresholds passed, once per window whatever the number of processes."""

budget_spend = Table(
    "budget_spend",
    metadata,
    Column("scope", String(160), primary_key=True),
    Column("window", String(32), primary_key=True),
    Column("window_start_us", BigInteger, primary_key=True, autoincrement=False),
    _count("spent_nano_usd"),
    _count("reserved_nano_usd"),
    _count("overrun_nano_usd"),
)
"""Counters of the budgets' windows: the place where all gateway processes agree."""

budget_overruns = Table(
    "budget_overruns",
    metadata,
    Column("key", Text, primary_key=True),
    Column("day_us", BigInteger, primary_key=True, autoincrement=False),
    _count("nano_usd"),
    _count("requests"),
)
"""What requests under a budget cost beyond what was held for them, by key and UTC day."""

leases = Table(
    "leases",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("scope", String(160), primary_key=True),
    Column("window", String(32), primary_key=True),
    Column("window_start_us", BigInteger, primary_key=True, autoincrement=False),
    _count("nano_usd"),
    _count("spent_nano_usd"),
    _count("overrun_nano_usd"),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False, index=True),
    _count("held_nano_usd"),
    Column("ended_us", BigInteger),
    _count("counted_nano_usd"),
)
"""The slice of a counter's reserved money that one gateway process holds, and all that it booked
there so far. A live owner keeps extending `expires_us`; an ended lease stays for a day, so that
whatever turns up late is booked once. held: the part for requests under way when it was written.
counted: what of its owner's rows the counter has from elsewhere, as its end is not to count it."""

machine_time = Table(
    "machine_time",
    metadata,
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("machine", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
    Column("ns", BigInteger, nullable=False),
    Index(None, "ended_us"),
)
"""Measured, each kind by itself: see machine_time.py. Backend "": the machine as a whole."""

machine_prices = Table(
    "machine_prices",
    metadata,
    Column("machine", Text, primary_key=True),
    Column("since_us", BigInteger, primary_key=True, autoincrement=False),
    Column("configured", JSON, nullable=False),
)
"""How each machine was configured from when on, as its supervisor saw it; the first from 0 on."""

subjects = Table(
    "subjects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    UniqueConstraint("kind", "name"),
)
"""Who a row's `team` or `user` is. The ledger holds the random id; without this row nobody can
tell whose it was, and sums and hashes stay as they are."""

rollup_keys = Table(
    "rollup_keys",
    metadata,
    _id("id"),
    Column("fact", String(8), nullable=False),
    *(Column(n, Text, nullable=False) for n in ("team", "key", "model", "policy", "rule", "task")),
    *(Column(name, Text) for name in ("backend", "machine", "machine_type", "kind")),
    Column("charged", Boolean, nullable=False),
    Column("firsts", Integer, nullable=False),
)
"""What a roll-up's sums are grouped by; the id is a hash of the rest. See rollups.py."""

rollups = Table(
    "rollups",
    metadata,
    Column("span_s", Integer, primary_key=True, autoincrement=False),
    *(_id(name) for name in ("bucket_us", "key_id")),
    *_sums(),
)
"""Sums of requests and charges, written with the rows; spans are named in rollups.py."""

rollup_values = Table(
    "rollup_values",
    metadata,
    _id("id"),
    Column("dimension", Text, nullable=False),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""Users (subject ids), tags' values, sets of them: see rollups.py; id: a hash of the other two."""

rollup_details = Table(
    "rollup_details",
    metadata,
    Column("span_s", Integer, primary_key=True, autoincrement=False),
    *(_id(name) for name in ("bucket_us", "dimension_id", "value_id", "key_id")),
    *_sums(),
    sqlite_with_rowid=False,
)
"""The roll-ups by user and by tag: half hours and UTC days, as far as the rows go back."""

ledger_state = Table(
    "ledger_state",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Points in time, unix microseconds: rollups_from, details_from (older rows are in none),
half_hours_from (details before are of days only), pruned_until (older rows may be gone),
closed_until (charges before it are frozen)."""

chain = Table(
    "chain",
    metadata,
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(128), nullable=False),
    Column("seq", Integer),
    Column("sha256", String(64), nullable=False),
)
"""The audit chain: each link hashes a row (seq NULL: the request's) and the link before."""

adjustments = Table(
    "adjustments",
    metadata,
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("month", String(7), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("payee", Text, nullable=False),
    Column("nano_usd", BigInteger, nullable=False),
    _text("note"),
    Column("posted_us", BigInteger, nullable=False),
    Column("corrects", String(7)),
)
"""What an invoice says beside the charges: discounts and differences, each its own line. corrects:
the closed month that a line of an open one is about."""

closings = Table(
    "closings",
    metadata,
    Column("month", String(7), primary_key=True),
    Column("closed_us", BigInteger, nullable=False),
    Column("bill", JSON, nullable=False),
)
"""Frozen months, each with the bill as it was printed."""

feedback = Table(
    "feedback",
    metadata,
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("request_id", String(128), nullable=False, index=True),
    Column("score", Float, nullable=False),
    _text("comment"),
    Column("at_us", BigInteger, nullable=False, index=True),
)
"""What callers say of answers, 0 (bad) to 1 (good); several for one request are averaged."""

policy_versions = Table(
    "policy_versions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("text", Text, nullable=False),
    Column("first_us", BigInteger, nullable=False),
)
"""Every version of a policy that was ever loaded to decide, whole."""

overrides = Table(
    "overrides",
    metadata,
    Column("slot", String(160), primary_key=True),
    Column("value", JSON(none_as_null=True)),
    Column("version", BigInteger, nullable=False),
    Column("until", Float, nullable=False),
    _text("actor"),
    _text("address"),
    _text("why"),
)
"""What operators changed for a while, the newest of each slot; NULL: lifted. See
gateway/overrides/model.py."""

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("key", Text, nullable=False),
    Column("open_key", Text, unique=True),
    Column("kind", String(16), nullable=False),
    Column("severity", String(8), nullable=False),
    Column("title", Text, nullable=False),
    _text("text"),
    Column("facts", JSON, nullable=False),
    Column("opened_us", BigInteger, nullable=False, index=True),
    Column("seen_us", BigInteger, nullable=False),
    Column("resolved_us", BigInteger),
)
"""What was found wrong. open_key: the key while it is open, so that no key is open twice."""

alert_deliveries = Table(
    "alert_deliveries",
    metadata,
    Column("alert_id", String(32), primary_key=True),
    Column("event", String(8), primary_key=True),
    Column("channel", String(64), primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("due_us", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("delivered_us", BigInteger),
    _text("error"),
    Index(None, "delivered_us", "due_us"),
)
"""The outbox: who is still to be told. due_us: not before; a claimed one is due again later."""

shadows = Table(
    "shadows",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("backend", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False, index=True),
    Column("error", Text),
    Column("ms", Float, nullable=False),
    _count("completion_tokens"),
    _count("cost_nano_usd"),
    _text("finish_reason"),
    Column("same", Boolean),
)
"""What became of copies that were sent to another backend: error NULL: it answered; same: word for
word what the client got. No text. The cost is a charge of the request, too."""

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("team", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("user", Text),
    Column("purpose", String(32), nullable=False),
    _text("filename"),
    _count("bytes"),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False, index=True),
    Index(None, "team", "created_us"),
)
"""What clients uploaded and what batches answered, without its bytes."""

file_parts = Table(
    "file_parts",
    metadata,
    Column("file_id", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)
"""The bytes of files, in order: prompts and answers, until the file goes."""

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("team", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("user", Text),
    Column("status", String(16), nullable=False, index=True),
    Column("body", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    _count("leased_until_us"),
    Index(None, "team", "created_us"),
)
"""Batches. body: as clients see them, without the status. leased_until_us: until when a gateway
process works on it; expires_us: when the row goes."""
