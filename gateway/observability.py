"""Logs and metrics: one structlog set-up, one place with every metric name of the gateway.

With several gateway processes `prometheus_client` keeps each process's values in files under
$PROMETHEUS_MULTIPROC_DIR, and `/metrics` adds them up; the worker sets the variable before
this module is imported.
"""

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO

import msgspec
import structlog
from msgspec import Struct
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from gateway.ledger.records import ChargeRecord

_encode = msgspec.json.Encoder(enc_hook=str).encode
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
"""vLLM's buckets of the time to first token."""
TPOT_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
"""vLLM's buckets of the time per output token."""
DURATION_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""vLLM's buckets of request and queue times."""
OVERHEAD_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip


def configure_logging(level: str = "info") -> None:
    """Send events to stderr: coloured lines on a terminal, else JSON, one line each."""
    processors: list[Any] = [structlog.contextvars.merge_contextvars]
    if sys.stderr.isatty():
        processors += [
            structlog.processors.add_log_level,
            _add_time,
            structlog.dev.ConsoleRenderer(),
        ]
        factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    else:
        processors.append(_json_line)
        factory = LineLogger(sys.stderr.buffer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")


class LineLogger:
    """Writes rendered events; those of one turn of an event loop go out in one write.

    A write per event is a system call that lets go of the interpreter's lock: under load that
    costs more than making the line. Also its own factory: all loggers share the one stream.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._lock = threading.Lock()
        atexit.register(self._flush)

    def __call__(self, *_args: Any) -> "LineLogger":
        """As structlog's logger factory."""
        return self

    def msg(self, line: bytes) -> None:
        """Write the line: at the end of the turn in an event loop, else at once."""
        self._lines.append(line)
        if len(self._lines) > 1:
            return  # the first one saw to it
        try:
            asyncio.get_running_loop().call_soon(self._flush)
        except RuntimeError:
            self._flush()

    debug = info = warning = error = critical = exception = fatal = log = warn = msg

    def _flush(self) -> None:
        with self._lock:
            lines: list[bytes] = []
            while self._lines:
                lines.append(self._lines.popleft() + b"\n")
            self._stream.write(b"".join(lines))
            self._stream.flush()


def _add_time(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    event["at"] = _now()
    return event


def _now() -> str:
    now_ms = time.time_ns() // 1_000_000
    return f"{_second(now_ms // 1000)}.{now_ms % 1000:03d}+00:00"


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _json_line(logger: Any, method: str, event: dict[str, Any]) -> bytes:
    """The event as JSON; one processor, since every step costs each request a call."""
    event["level"] = "error" if method == "exception" else method
    event["at"] = _now()
    if "exc_info" in event:
        return _encode(structlog.processors.format_exc_info(logger, method, event))
    return _encode(event)


class BackendMetrics(Struct, frozen=True, kw_only=True):
    """The children of the histograms that bear one backend's label."""

    ttft: Histogram
    tpot: Histogram
    duration: Histogram
    queue_time: Histogram


class Metrics:
    """Every metric of the gateway. Labels never hold a key, user, tag or request."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=False)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.ttft = histogram(
            "headgate_time_to_first_token_seconds",
            "From the request to the first token sent.",
            TTFT_BUCKETS_S,
            "backend",
        )
        self.tpot = histogram(
            "headgate_time_per_output_token_seconds",
            "Mean time between two tokens of an answer.",
            TPOT_BUCKETS_S,
            "backend",
        )
        self.duration = histogram(
            "headgate_request_duration_seconds",
            "From the request to its last byte.",
            DURATION_BUCKETS_S,
            "backend",
        )
        self.queue_time = histogram(
            "headgate_queue_time_seconds",
            "From the request to the call of the backend that answered.",
            DURATION_BUCKETS_S,
            "backend",
        )
        self.overhead = histogram(
            "headgate_overhead_seconds",
            "Time that the gateway added to its backends' time.",
            OVERHEAD_BUCKETS_S,
        )
        self.requests = counter(
            "headgate_requests_total", "Requests settled.", "endpoint", "outcome", "status"
        )
        self.tokens = counter("headgate_tokens_total", "Tokens by kind.", "kind", "backend")
        self.cache_queries = counter("headgate_cache_queries_total", "Cache look-ups.")
        self.cache_hits = counter("headgate_cache_hits_total", "Answers reused.", "layer")
        self.cache_errors = counter(
            "headgate_cache_errors_total", "Requests that passed uncached: the store was away."
        )
        self.cost = counter(
            "headgate_cost_usd_total", "Charges, dollars.", "model", "backend", "machine_type"
        )
        self.saved = counter("headgate_saved_usd_total", "What reused answers would have cost.")
        self.attempts_failed = counter(
            "headgate_attempts_failed_total", "Backend calls that failed.", "backend", "error"
        )
        self.retries = counter(
            "headgate_retries_total", "Calls of a backend after one that had failed.", "backend"
        )
        self.hedges = counter(
            "headgate_hedges_total",
            "Calls made beside a slow one, by backend and whether they answered first.",
            "backend",
            "won",
        )
        self.second_looks = counter(
            "headgate_second_looks_total",
            "Requests for which routing asked the encoder: used, late or failed.",
            "result",
        )
        self.rungs = counter(
            "headgate_cascade_rungs_total",
            "Answers of cascades' rungs, by policy and what became of them.",
            "policy",
            "verdict",
        )
        self.in_flight = Gauge(
            "headgate_requests_in_flight",
            "Requests being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.backend_ready = Gauge(
            "headgate_backend_ready",
            "1 if a backend would be given requests: its last probe is well, its breaker not open.",
            ("backend",),
            registry=registry,
            multiprocess_mode="min",
        )
        self.ledger_up = Gauge(
            "headgate_ledger_up",
            "1 if the ledger's database and its journal take rows.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.ledger_waiting = Gauge(
            "headgate_ledger_waiting_bytes",
            "In journals: settled requests on their way into the database.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.ejected = Gauge(
            "headgate_backend_addresses_ejected",
            "Addresses of a backend with several that are asked last.",
            ("backend",),
            registry=registry,
            multiprocess_mode="max",
        )

        self._by_backend: dict[str, BackendMetrics] = {}
        self._children: dict[tuple[str, ...], Counter] = {}

    def of_backend(self, name: str) -> "BackendMetrics":
        """The histograms of one backend; the look-up by label is paid once."""
        found = self._by_backend.get(name)
        if found is None:
            found = self._by_backend[name] = BackendMetrics(
                ttft=self.ttft.labels(name),
                tpot=self.tpot.labels(name),
                duration=self.duration.labels(name),
                queue_time=self.queue_time.labels(name),
            )
        return found

    def _child(self, metric: Counter, *labels: str) -> Counter:
        key = (metric._name, *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found

    def count_request(self, endpoint: str, outcome: str, status: int) -> None:
        """One settled request."""
        self._child(self.requests, endpoint, outcome, str(status)).inc()

    def count_hit(self, layer: str, saved_usd: float) -> None:
        """One reused answer."""
        self._child(self.cache_hits, layer).inc()
        self.saved.inc(saved_usd)

    def count_charge(self, charge: ChargeRecord, model: str) -> None:
        """One charge: its tokens and dollars."""
        backend = charge.backend
        cached = charge.cached_prompt_tokens
        for kind, tokens in (
            ("prompt", charge.prompt_tokens - cached),
            ("cached_prompt", cached),
            ("completion", charge.completion_tokens),
        ):
            if tokens > 0:
                self._child(self.tokens, kind, backend).inc(tokens)
        if charge.cost_nano_usd > 0:
            cost = self._child(self.cost, model, backend, charge.machine_type or "")
            cost.inc(charge.cost_nano_usd / 1e9)

    def count_failed_attempt(self, backend: str, error: str) -> None:
        """One call of a backend that failed."""
        self._child(self.attempts_failed, backend, error).inc()

    def count_second_look(self, result: str) -> None:
        """One request that routing asked the encoder about."""
        self._child(self.second_looks, result).inc()

    def count_rung(self, policy: str, verdict: str) -> None:
        """One rung of a cascade: accepted, rejected, failed, or last."""
        self._child(self.rungs, policy, verdict).inc()

    def exposition(self) -> tuple[bytes, str]:
        """The metrics of all gateway processes as text, and its content type."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
