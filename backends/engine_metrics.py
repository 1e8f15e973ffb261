"""The engine server's Prometheus metrics; token times have vLLM's buckets."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backends.engine.engine import EngineStats
from backends.engine.step_costs import StepCoefficients

_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TPOT_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class EngineMetrics:
    """Counts and times of one engine; `text()` is what /metrics serves."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        costs: Callable[[], StepCoefficients],
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`about` becomes the labels of `headgate_engine_info`."""
        self._registry = registry = CollectorRegistry()
        self.ttft = _histogram(
            "time_to_first_token", "From arrival to the first token.", _TTFT_BUCKETS, registry
        )
        self.tpot = _histogram(
            "time_per_output_token",
            "Mean time between two tokens of an answer, once for each answer.",
            _TPOT_BUCKETS,
            registry,
        )
        self.duration = _histogram(
            "request_duration", "From arrival to the end.", _REQUEST_BUCKETS, registry
        )
        self.queue_time = _histogram(
            "queue_time", "From arrival to the first step.", _REQUEST_BUCKETS, registry
        )
        self.requests = Counter(
            "headgate_engine_requests_total",
            "Answers ended, by reason.",
            ["finish_reason"],
            registry=registry,
        )
        info = Gauge(
            "headgate_engine_info", "What was chosen for this engine.", about, registry=registry
        )
        (info.labels(*about.values()) if about else info).set(1)
        registry.register(_StatsCollector(stats))
        registry.register(_CostCollector(costs))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


class _StatsCollector(Collector):
    """What the engine counts itself, read when asked."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = {
            "requests_running": ("Requests in the batch.", stats.running),
            "requests_waiting": ("Requests in the queue.", stats.waiting),
            "kv_cache_usage_ratio": ("KV blocks in use over all.", stats.kv_usage_ratio),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"headgate_engine_{name}", words, value=value)
        counters = {
            "steps": ("Steps computed.", stats.steps),
            "preemptions": ("Requests that gave up their blocks.", stats.preemptions),
            "cache_queries": (
                "Prompt tokens looked up in the prefix cache.",
                stats.prefix_cache_queried_tokens,
            ),
        }
        for name, (words, count) in counters.items():
            yield CounterMetricFamily(f"headgate_engine_{name}", words, value=count)
        hits = CounterMetricFamily(
            "headgate_engine_cache_hits", "Prompt tokens whose KV was reused.", labels=["layer"]
        )
        hits.add_metric(["prefix"], stats.prefix_cache_hit_tokens)
        yield hits
        tokens = CounterMetricFamily(
            "headgate_engine_tokens", "Tokens by what was done with them.", labels=["kind"]
        )
        for kind in ("prompt", "cached", "generated", "recomputed"):
            tokens.add_metric([kind], getattr(stats, f"{kind}_tokens"))
        tokens.add_metric(["draft"], stats.draft_tokens)
        tokens.add_metric(["draft_accepted"], stats.draft_accepted)
        yield tokens


class _CostCollector(Collector):
    """The fitted cost of a step's terms, read when asked."""

    def __init__(self, costs: Callable[[], StepCoefficients]) -> None:
        self._costs = costs

    def collect(self) -> Iterator[Metric]:
        found = self._costs()
        family = GaugeMetricFamily(
            "headgate_engine_step_cost_seconds",
            "Fitted: of a step itself, of each token, and of each token that one attends to.",
            labels=["term"],
        )
        for name in found.__struct_fields__:
            family.add_metric([name.removesuffix("_ns")], getattr(found, name) / 1e9)
        yield family


def _histogram(
    name: str, words: str, buckets: tuple[float, ...], registry: CollectorRegistry
) -> Histogram:
    return Histogram(f"headgate_engine_{name}_seconds", words, buckets=buckets, registry=registry)
