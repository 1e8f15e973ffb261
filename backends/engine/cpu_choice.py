"""What an engine on a CPU computes in and keeps its KV in: whichever is fastest on this machine.

CPUs differ in what they multiply well and in how fast their memory is, so nothing is assumed: two
layers of the model's shape, no wider than `WIDEST`, answer one turn in every dtype by the very
code that will serve it. What was found stays in the cache folder under all that it depends on.
What is less exact must be faster by a margin: noise alone shall not cost digits.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor

from backends.engine.kv_cache import allocate
from backends.layers.attention import ForwardBatch
from backends.models.config import ModelConfig
from backends.models.families import Family
from backends.models.llama import Llama
from backends.models.loader import WeightReader
from backends.quantization.schemes import QuantizeAtLoad
from kernels.dispatch import implementation_for
from kernels.native import cache_folder, cpu_flags, level

WIDEST: Final = 512
"""Hidden size of what is measured; wider models shrink to it in all their sizes alike."""
MARGIN: Final = 1.05
"""How much faster the less exact must be."""
_LAYERS, _VOCABULARY, _BLOCK = 2, 64, 16
_CONTEXT, _CHUNK, _CHUNKS, _ANSWER = 1024, 64, 4, 256
"""Tokens: a turn of a conversation, whose beginning is in the prefix cache."""
_REGIONS: Final = 4
"""Of the cache, read in turns: a core's own cache does not hold the context of many layers."""
_ROUNDS: Final = 2
_CPU: Final = torch.device("cpu")

log = logging.getLogger(__name__)


class Dtypes(NamedTuple):
    """Names of what to compute in and of what to keep keys and values in."""

    compute: str
    kv: str

    def __str__(self) -> str:
        return f"{self.compute} with {self.kv} KV"


EXACT: Final = Dtypes("float32", "float32")
CANDIDATES: Final = (
    EXACT,
    Dtypes("float32", "float16"),
    Dtypes("float32", "bfloat16"),
    Dtypes("bfloat16", "float32"),
)
"""The most exact first. Eager torch reads keys of 16 bits slowly: not tried with bfloat16."""


def choose(
    config: ModelConfig,
    scheme: QuantizeAtLoad | None,
    candidates: Sequence[Dtypes] = CANDIDATES,
) -> Dtypes:
    """Pick what answers soonest, measured now or remembered.

    Args:
        scheme: What the model's linear weights are rounded to; None: to nothing.
        candidates: The most exact first.
    """
    small = shrunk(config)
    machine = (cpu_flags(), implementation_for("cpu"), level(), torch.__version__)
    told = repr((__doc__, machine, small, scheme, candidates))
    file = cache_folder() / f"dtypes-{hashlib.sha256(told.encode()).hexdigest()[:20]}.json"
    times_us = _remembered(file)
    if times_us is None or len(times_us) != len(candidates):
        times_us = _keep(file, _measure(small, scheme, candidates))
    chosen = fastest(dict(zip(candidates, times_us, strict=True)))
    shown = ", ".join(f"{c} {t:.0f} us" for c, t in zip(candidates, times_us, strict=True))
    log.info("cpu_dtypes_chosen: %s (two layers, one turn: %s)", chosen, shown)
    return chosen


def fastest(times_us: dict[Dtypes, float]) -> Dtypes:
    """The first that none after it beats by `MARGIN`."""
    (best, least), *others = times_us.items()
    for candidate, took in others:
        if took * MARGIN < least:
            best, least = candidate, took
    return best


def shrunk(config: ModelConfig) -> ModelConfig:
    """Two dense layers of a model's shape, a wide one's smaller."""
    share = min(1.0, WIDEST / config.hidden_size)
    group = config.num_attention_heads // config.num_key_value_heads
    kv_heads = max(1, round(config.num_key_value_heads * share))
    experts = config.family.experts[0]
    middle = config.intermediate_size
    if experts is not None:
        middle = experts.per_token * experts.intermediate_size
    return msgspec.structs.replace(
        config,
        vocab_size=_VOCABULARY,
        hidden_size=_even(config.hidden_size * share),
        intermediate_size=_even(middle * share),
        num_hidden_layers=_LAYERS,
        num_attention_heads=group * kv_heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        family=Family(windows=(None,) * _LAYERS, experts=(None,) * _LAYERS),
        mlp_bias=False,
        quantization=None,
    )


def _even(size: float) -> int:
    """A size that whole vectors divide, where the original's is large enough."""
    return max(1, round(size / 64) * 64 if size >= 64 else round(size))


def _remembered(file: Path) -> list[float] | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[float])
    except (OSError, msgspec.DecodeError):
        return None


def _keep(file: Path, times_us: list[float]) -> list[float]:
    """Keep what was found; where another process was first, return what it found."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{time.monotonic_ns()}")
        fresh.write_bytes(msgspec.json.encode(times_us))
        try:
            file.hardlink_to(fresh)
        except FileExistsError:
            found = _remembered(file) or []
            return found if len(found) == len(times_us) else times_us
        finally:
            fresh.unlink()
    except OSError as error:
        log.warning("cpu_dtypes_not_kept: %s; measuring again at the next start", error)
    return times_us


class _Blank:
    """A checkpoint of one number, of any shape."""

    folder = Path("measured")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return True

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 2.0**-6, dtype=self._dtype)

    def ignore(self, name: str) -> None:
        pass

    def codes(self, names: Sequence[str], rows: Sequence[int], columns: int) -> None:
        return None


class _Trial:
    """Two layers and a cache."""

    def __init__(self, model: Llama, kv_dtype: torch.dtype) -> None:
        self._model = model
        self._caches = allocate(
            model.config,
            num_blocks=_REGIONS * _CONTEXT // _BLOCK,
            block_size=_BLOCK,
            dtype=kv_dtype,
            device=_CPU,
        )
        for half in (half for layer in self._caches for half in layer[:2]):
            half.view(torch.uint8).zero_()  # Memory that was never written is no memory yet.

    def turn_us(self) -> float:
        """Of one turn, reckoned from a chunk of its prompt and a step of its answer."""
        steps = [self._run(1, region) for region in range(_REGIONS)]
        return self._run(_CHUNK, 0) * _CHUNKS + sum(steps) / _REGIONS * _ANSWER

    def _run(self, tokens: int, region: int) -> float:
        """Microseconds of the last so many tokens of a context."""
        positions = torch.arange(_CONTEXT - tokens, _CONTEXT)
        blocks = torch.arange(_CONTEXT // _BLOCK, dtype=torch.int32)
        batch = ForwardBatch(
            token_ids=torch.zeros(tokens, dtype=torch.int64),
            positions=positions,
            slot_mapping=positions + region * _CONTEXT,
            block_tables=(blocks + region * len(blocks))[None],
            query_start_lens=torch.tensor([0, tokens], dtype=torch.int32),
            context_lens=torch.tensor([_CONTEXT], dtype=torch.int32),
            max_query_len=tokens,
            max_context_len=_CONTEXT,
        )
        began = time.thread_time_ns()
        self._model.step(batch, self._caches, None)
        return (time.thread_time_ns() - began) / 1000


@torch.inference_mode()
def _measure(
    config: ModelConfig, scheme: QuantizeAtLoad | None, candidates: Sequence[Dtypes]
) -> list[float]:
    """Microseconds of each candidate's turn: the best of rounds in turns.

    Of one thread, whose own time goes on only while it runs: on a busy machine too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = {name: _model(config, scheme, name) for name in {c.compute for c in candidates}}
        trials = [_Trial(models[c.compute], getattr(torch, c.kv)) for c in candidates]
        rounds = [[trial.turn_us() for trial in trials] for _ in range(1 + _ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _model(config: ModelConfig, scheme: QuantizeAtLoad | None, dtype: str) -> Llama:
    reader = WeightReader(
        _Blank(getattr(torch, config.dtype)),
        device=_CPU,
        dtype=getattr(torch, dtype),
        quantize=scheme,
        tied=True,
    )
    return Llama(config, reader, max_positions=_CONTEXT)
