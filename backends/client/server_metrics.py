"""What other people's engines say of themselves at /metrics, under the names of each."""

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Struct

_NAMES: Mapping[str, tuple[str, ...]] = {
    # vLLM, SGLang, TGI, llama.cpp
    "running": (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "tgi_batch_current_size",
        "llamacpp:requests_processing",
    ),
    "waiting": (
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "tgi_queue_size",
        "llamacpp:requests_deferred",
    ),
    "kv_usage": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",  # before 0.10
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
    "prompt_tokens": (
        "vllm:prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "tgi_request_input_length_sum",
        "llamacpp:prompt_tokens_total",
    ),
    "cached_tokens": ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
    "generated_tokens": (
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "tgi_request_generated_tokens_sum",
        "llamacpp:tokens_predicted_total",
    ),
    "requests": (
        "vllm:request_prefill_time_seconds_count",
        "sglang:time_to_first_token_seconds_count",
        "tgi_request_count",
    ),
    "prefill_seconds": (
        "vllm:request_prefill_time_seconds_sum",
        "sglang:time_to_first_token_seconds_sum",
        'tgi_batch_inference_duration_sum{method="prefill"}',
        "llamacpp:prompt_seconds_total",
    ),
    "decode_seconds": (
        "vllm:request_decode_time_seconds_sum",
        "sglang:inter_token_latency_seconds_sum",
        "llamacpp:tokens_predicted_seconds_total",
    ),
}
_FIELD_OF = {name: field for field, names in _NAMES.items() for name in names}
Terms = tuple[float, float, float, float]


class ServerMetrics(Struct, frozen=True, kw_only=True):
    """Of all models behind one address; None: the server does not say."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """Of the fullest of several engines."""
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    generated_tokens: float | None = None
    requests: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "ServerMetrics":
        """Read the exposition format; unknown names and lines that are none are skipped."""
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            head, _, value = line.rpartition(" ")
            name, _, labels = head.partition("{")
            field = _FIELD_OF.get(name)
            if field is None and 'method="prefill"' in labels:
                field = _FIELD_OF.get(f'{name}{{method="prefill"}}')
            if field is None:
                continue
            try:
                number = float(value)
            except ValueError:
                continue
            if field == "kv_usage":
                found[field] = max(found.get(field, 0.0), number)
            elif number >= 0:  # not NaN either
                found[field] = found.get(field, 0.0) + number
        return msgspec.convert(found, cls, strict=False)

    def cached_since(self, before: "ServerMetrics") -> float:
        """Tokens of prompts that were in its prefix cache, between two readings."""
        return _more(self.cached_tokens, before.cached_tokens)

    def since(self, before: "ServerMetrics") -> Iterator[tuple[Terms, float]]:
        """What happened between two readings: the terms of a request's work (requests, fresh
        prompt tokens, answer tokens, answer tokens x requests beside them), and their seconds."""
        prompt = _more(self.prompt_tokens, before.prompt_tokens)
        prompt -= _more(self.cached_tokens, before.cached_tokens)
        spent = _more(self.prefill_seconds, before.prefill_seconds)
        if prompt > 0 and spent > 0:
            yield (_more(self.requests, before.requests), prompt, 0.0, 0.0), spent
        generated = _more(self.generated_tokens, before.generated_tokens)
        spent = _more(self.decode_seconds, before.decode_seconds)
        if generated > 0 and spent > 0 and self.running is not None and before.running is not None:
            beside = max(1.0, (self.running + before.running) / 2)
            yield (0.0, 0.0, generated, generated * beside), spent


def _more(now: float | None, before: float | None) -> float:
    """How much a counter has grown; 0 if it is not there or began anew."""
    return 0.0 if now is None or before is None else max(0.0, now - before)
