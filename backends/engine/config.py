"""How one engine runs: frozen, derived once, never changed in place."""

from typing import Final, Literal

from msgspec import Struct, field

KvCacheDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
SpeculationMethod = Literal["auto", "off", "ngram", "draft"]

DEFAULT_KV_MEMORY_BYTES: Final = 256 * 2**20


class SpeculationConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether and how tokens are guessed ahead and verified in one pass.

    Raises:
        ValueError: a bad combination, in clear words.
    """

    method: SpeculationMethod = "auto"
    """auto: every proposer there is, each only where it wins. ngram: look the answer up in the
    prompt. draft: a smaller model guesses. off: none, not even a request's own `prediction`."""
    num_tokens: int = 4
    """Most tokens guessed ahead of a sequence in one step."""
    draft_model: str | None = None
    """The smaller model for `draft` and `auto`: anything that can be served as a model."""

    def __post_init__(self) -> None:
        _require("speculation.num_tokens", self.num_tokens, 1, 64)
        if self.method == "draft" and not self.draft_model:
            raise ValueError(
                "speculation.method is 'draft' but speculation.draft_model is not set; "
                "name a smaller model with the same tokenizer, or choose 'ngram' or 'off'"
            )


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits and choices of one engine; build it with `derive`, which makes them consistent.

    Raises:
        ValueError: values that cannot work together, naming field, value and what is allowed.
    """

    num_blocks: int
    """KV blocks in the pool, shared by all sequences."""
    max_model_len: int
    """Most tokens of one sequence, prompt and answer together."""
    block_size: int = 16
    """Token slots of a KV block."""
    max_num_seqs: int = 64
    """Most sequences that run at once."""
    max_num_batched_tokens: int = 2048
    """Most tokens that one step processes, over all sequences."""
    enable_prefix_caching: bool = True
    """Reuse the KV of full blocks whose tokens (and all before them) are the same."""
    enable_chunked_prefill: bool = True
    """Split long prompts over steps, so that running answers go on meanwhile."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """auto: the dtype the model computes in."""
    kv_bytes_per_token: int = 0
    """KV bytes of one token over all layers: turns blocks held into `kv_byte_seconds`."""
    run_ahead: bool = False
    """Whether the runner starts a step before it is scheduled: a sequence then holds the block of
    its next token a step early."""
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def __post_init__(self) -> None:
        _require("block_size", self.block_size, 1, 1024)
        _require("num_blocks", self.num_blocks, 1)
        _require("max_model_len", self.max_model_len, 2)
        _require("max_num_seqs", self.max_num_seqs, 1, 65_536)
        _require("kv_bytes_per_token", self.kv_bytes_per_token, 0)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least "
                f"max_num_seqs ({self.max_num_seqs}), so that each running sequence gets a token"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; without chunked prefill "
                f"it must be at least max_model_len ({self.max_model_len}): raise it, or leave "
                "enable_chunked_prefill on"
            )

    @property
    def kv_tokens(self) -> int:
        """Token slots of the whole pool."""
        return self.num_blocks * self.block_size

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers."""
        return self.block_size * self.kv_bytes_per_token

    @property
    def longest_sequence(self) -> int:
        """Most tokens of one sequence that both the context and the pool can hold."""
        return min(self.max_model_len, self.kv_tokens)

    @classmethod
    def derive(
        cls,
        *,
        context_tokens: int,
        kv_bytes_per_token: int,
        kv_memory_bytes: int = DEFAULT_KV_MEMORY_BYTES,
        max_model_len: int | None = None,
        num_blocks: int | None = None,
        block_size: int = 16,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        kv_cache_dtype: KvCacheDtype = "auto",
        speculation: SpeculationConfig | None = None,
        run_ahead: bool = False,
    ) -> "EngineConfig":
        """A consistent configuration from a model's numbers and what the operator set.

        Args:
            context_tokens: what the model was made for (`max_position_embeddings`).
            kv_bytes_per_token: KV bytes of one token over all layers.
            kv_memory_bytes: memory for the pool; the pool never takes more than
                `max_num_seqs` sequences of `max_model_len` can use.
            num_blocks: overrides `kv_memory_bytes`.

        Raises:
            ValueError: a longer context than the model's, or memory for less than one sequence.
        """
        _require("block_size", block_size, 1, 1024)
        _require("max_num_seqs", max_num_seqs, 1, 65_536)
        length = context_tokens if max_model_len is None else max_model_len
        if length > context_tokens:
            raise ValueError(
                f"max_model_len is {length}; the model was made for {context_tokens} tokens: "
                "lower max_model_len"
            )
        if max_num_batched_tokens is None:
            whole = 0 if enable_chunked_prefill else length
            max_num_batched_tokens = max(2048, max_num_seqs, whole)
        if num_blocks is None:
            num_blocks = _blocks_in(
                kv_memory_bytes, block_size, kv_bytes_per_token, length, max_num_seqs
            )
        return cls(
            num_blocks=num_blocks,
            max_model_len=length,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            enable_chunked_prefill=enable_chunked_prefill,
            kv_cache_dtype=kv_cache_dtype,
            kv_bytes_per_token=kv_bytes_per_token,
            speculation=speculation or SpeculationConfig(),
            run_ahead=run_ahead,
        )


def _blocks_in(
    memory_bytes: int, block_size: int, bytes_per_token: int, max_model_len: int, max_num_seqs: int
) -> int:
    """Blocks that fit the memory, no more than the largest load can use."""
    per_sequence = -(-max_model_len // block_size)
    fitting = memory_bytes // max(1, block_size * bytes_per_token)
    if fitting < per_sequence:
        need = per_sequence * block_size * bytes_per_token
        raise ValueError(
            f"kv_memory_bytes is {memory_bytes}; one sequence of {max_model_len} tokens needs "
            f"{need}: give the cache more memory or lower max_model_len"
        )
    return min(fitting, per_sequence * max_num_seqs)


def _require(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {value}; allowed: {allowed}")
