"""From options to a running engine: the one place that puts its parts together."""

import os
import time
from pathlib import Path
from typing import Final

import torch

from backends.engine.config import DEFAULT_KV_MEMORY_BYTES, EngineConfig
from backends.engine.decode_graphs import CudaCapture
from backends.engine.draft_runner import DraftRunner
from backends.engine.dtypes import pick_dtypes
from backends.engine.engine import Engine
from backends.engine.graph_runner import GraphModelRunner
from backends.engine.kv_cache import kv_bytes_per_token, kv_memory_bytes
from backends.engine.model_runner import ModelRunner
from backends.engine.options import EngineOptions
from backends.errors import ModelLoadError
from backends.meter import MeterSlot
from backends.models.adapters import read_adapter
from backends.models.config import ModelConfig, read_model_config
from backends.models.folder import model_folder
from backends.models.registry import Model, load_model
from backends.speculation.speculator import Speculator
from backends.tokenizer import Tokenizer
from kernels.dispatch import implementation_for
from kernels.invariance import promise

_SMALL_STEP_BYTES: Final = 32 * 2**20
"""A forward pass that reads less than this has little to share out."""
_SMALL_STEP_THREADS: Final = 4
_DRAFT_KV_SHARE: Final = 4
"""The draft model's cache may take a quarter of the large model's memory."""


def build_engine(options: EngineOptions, *, meter: MeterSlot | None = None) -> Engine:
    """Load a model and everything around it.

    `meter` is this process's place at its machine's, if a supervisor gave it one.

    Raises:
        ModelLoadError: the model, its tokenizer or the draft model cannot be served.
        ValueError: options that cannot work together, or with this model or machine.
    """
    started_ns = time.perf_counter_ns()
    folder = model_folder(options.model)
    device = pick_device(options.device)
    if meter is not None and device.type != "cpu":
        meter.on_gpu()
    tokenizer = Tokenizer.from_folder(folder)
    model_config = read_model_config(folder)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ModelLoadError(
            f"{str(folder)!r}: the tokenizer has {tokenizer.vocab_size} tokens, but config.json's "
            f"vocab_size is {model_config.vocab_size}; they do not belong together"
        )
    dtype, kv_dtype = pick_dtypes(options, model_config, device)
    length = min(
        options.max_model_len or model_config.max_position_embeddings,
        model_config.max_position_embeddings,
    )
    model = load_model(
        folder,
        device=device,
        dtype=dtype,
        quantization=options.quantization,
        max_positions=length,
        config=model_config,
    )
    adapters = [
        read_adapter(name, Path(folder_of), model_config)
        for name, folder_of in options.lora_modules.items()
    ]
    model.adapt(adapters)
    if options.deterministic:
        if device.type == "cuda":
            promise()
        check_deterministic(model)
    if device.type == "cpu":
        torch.set_num_threads(options.threads or pick_threads(model.step_bytes))
    config = _engine_config(options, model_config, device, kv_dtype)
    runner = _runner(model, config, device, kv_dtype)
    draft = _draft_runner(options, config, folder, device, dtype, kv_dtype)
    speculator = Speculator.from_config(
        config.speculation, draft_model=draft, now_ns=time.perf_counter_ns
    )
    return Engine(
        config,
        runner,
        tokenizer,
        speculator=speculator,
        started_ns=started_ns,
        meter=meter,
        about={
            "device": str(device),
            "kernels": implementation_for(device.type),
            "dtype": _name(dtype),
            "kv_cache_dtype": _name(kv_dtype),
            "quantization": model.quantization or "none",
            "threads": str(torch.get_num_threads()),
        },
        adapters=list(options.lora_modules),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _runner(
    model: Model, config: EngineConfig, device: torch.device, kv_dtype: torch.dtype
) -> ModelRunner:
    """On a GPU steps are recorded beforehand and run ahead; on a CPU neither would gain."""
    if device.type != "cuda":
        return ModelRunner(model, config, device=device, kv_dtype=kv_dtype)
    runner = GraphModelRunner(
        model, config, device=device, kv_dtype=kv_dtype, capture=CudaCapture()
    )
    runner.graphs.prepare()
    return runner


def pick_device(name: str) -> torch.device:
    """Turn a device's name into the device; auto takes a GPU where there is one.

    Raises:
        ValueError: torch knows no such device, or does not see it on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch sees no GPU here; use cpu")
    return device


def check_deterministic(model: Model) -> None:
    """Refuse kernels whose result for one row depends on how many stand beside it.

    Raises:
        ValueError: they do, in this dtype and on this device.
    """
    if not model.is_batch_invariant:
        raise ValueError(
            "deterministic is true, but these kernels cannot promise it: give a GPU, or on a CPU a "
            "C++ compiler, dtype float32 (weights may be int8 or int4), and a model with a head "
            "size that is a multiple of 16; no mixture of experts"
        )


def pick_threads(step_bytes: int) -> int:
    """Choose the CPU threads of a forward pass that reads `step_bytes` of weights.

    A small model gets one where OpenMP's threads spin while they wait: a neighbour on the same
    cores would then cost more than the others bring.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if step_bytes >= _SMALL_STEP_BYTES:
        return max(1, cores or 1)
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    return min(_SMALL_STEP_THREADS, cores or 1) if passive else 1


def _engine_config(
    options: EngineOptions, model: ModelConfig, device: torch.device, kv_dtype: torch.dtype
) -> EngineConfig:
    memory = options.kv_memory_bytes
    if memory is None:
        memory = kv_memory_bytes(device, options.gpu_memory_utilization)
    return EngineConfig.derive(
        context_tokens=model.max_position_embeddings,
        kv_bytes_per_token=kv_bytes_per_token(model, kv_dtype),
        kv_memory_bytes=memory,
        max_model_len=options.max_model_len,
        num_blocks=options.num_blocks,
        block_size=options.block_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        enable_prefix_caching=options.enable_prefix_caching,
        enable_chunked_prefill=options.enable_chunked_prefill,
        kv_cache_dtype=options.kv_cache_dtype,
        speculation=options.speculation,
        run_ahead=device.type == "cuda",
    )


def _draft_runner(
    options: EngineOptions,
    config: EngineConfig,
    target: Path,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> DraftRunner | None:
    """Load the draft model, if the options name one and let it guess."""
    name = options.speculation.draft_model
    if name is None or options.speculation.method not in ("auto", "draft"):
        return None
    folder = model_folder(name)
    _check_same_tokens(target, folder)
    draft_config = read_model_config(folder)
    length = min(config.max_model_len, draft_config.max_position_embeddings)
    model: Model = load_model(
        folder,
        device=device,
        dtype=dtype,
        quantization=options.quantization,
        max_positions=length,
        config=draft_config,
    )
    block_bytes = config.block_size * kv_bytes_per_token(draft_config, kv_dtype)
    most = -(-length // config.block_size) * config.max_num_seqs
    memory = max(DEFAULT_KV_MEMORY_BYTES, config.num_blocks * config.block_bytes) // _DRAFT_KV_SHARE
    return DraftRunner(
        model,
        num_blocks=max(1, min(most, memory // block_bytes)),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=length,
        device=device,
        kv_dtype=kv_dtype,
    )


def _check_same_tokens(target: Path, draft: Path) -> None:
    """Refuse a draft model that speaks other tokens than the model it guesses for."""
    ours, theirs = (Tokenizer.from_folder(folder) for folder in (target, draft))
    size = ours.vocab_size
    if theirs.vocab_size != size or any(
        ours.token_bytes(token) != theirs.token_bytes(token) for token in range(size)
    ):
        raise ModelLoadError(
            f"draft model {str(draft)!r} has another tokenizer than {str(target)!r}; "
            "choose one of the same family"
        )
