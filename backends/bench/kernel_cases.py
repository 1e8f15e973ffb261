"""The calls that `headgate bench kernels` measures: every op in the shapes of a decoder.

Shapes are those of a model of 8 B parameters on a GPU and of one of 125 M on a CPU.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.tuning import Options, linear_class

Call = Callable[[Callable[..., Any]], Tensor]
"""Runs one implementation of the op and returns what is compared with the reference's result."""


class Tunable(NamedTuple):
    """A kernel whose launch options can be measured."""

    kernel: str
    shape: str
    """Shape class, see `kernels.tuning`."""
    candidates: Callable[[], Iterable[Options]]


class Case(NamedTuple):
    """One op in one shape."""

    op: str
    shape: str
    call: Call
    bytes_moved: int
    """Read and written at least."""
    flops: int
    torch: Callable[[], Tensor] | None = None
    """The nearest thing that torch has."""
    torch_agrees: bool = True
    """Whether it computes the same: it may round other things, or draw other tokens."""
    tunable: Tunable | None = None


class Sizes(NamedTuple):
    """A decoder's layer."""

    hidden: int
    middle: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rows: tuple[int, ...]
    contexts: tuple[int, ...]


LARGE = Sizes(4096, 14336, 32, 8, 128, 128_256, (1, 8, 64, 256), (1024, 8192))
SMALL = Sizes(768, 2048, 12, 12, 64, 32_000, (1, 8, 64), (128, 1024))
BLOCK_SIZE = 16


def cases(device: torch.device, ops: frozenset[str]) -> Iterator[Case]:
    """Build the cases of the named ops one after another, so that memory holds one at a time."""
    sizes = LARGE if device.type == "cuda" else SMALL
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for op, build in _BUILDERS.items():
        if op in ops:
            torch.manual_seed(0)
            yield from build(sizes, device, dtype)


def op_names() -> tuple[str, ...]:
    """Every op that has cases."""
    return tuple(_BUILDERS)


def _random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _paged_attention(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for context in sizes.contexts:
        for rows in sizes.rows:
            yield _attention_case(sizes, device, dtype, [1] * rows, context)
        yield _attention_case(sizes, device, dtype, [context], context)


def _attention_case(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, queries: list[int], context: int
) -> Case:
    heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    sequences, tokens, blocks = len(queries), sum(queries), context // BLOCK_SIZE
    keys, values = _random((2, sequences * blocks, BLOCK_SIZE, kv_heads, dim), device, dtype)
    q = _random((tokens, heads, dim), device, dtype)
    places = torch.randperm(sequences * blocks, device=device).int().view(sequences, blocks)
    starts = torch.tensor([0, *queries], device=device).cumsum(0).int()
    lens = torch.full((sequences,), context, dtype=torch.int32, device=device)
    scale, longest = dim**-0.5, max(queries)
    slots = places.long().flatten()
    dense = [
        cache[slots].view(sequences, context, kv_heads, dim).transpose(1, 2).contiguous()
        for cache in (keys, values)
    ]
    dense_q = q.view(sequences, longest, heads, dim).transpose(1, 2)

    def call(op: Callable[..., Any]) -> Tensor:
        result: Tensor = op(
            q, keys, values, places, starts, lens,
            scale=scale, max_query_len=longest, max_context_len=context,
        )  # fmt: skip
        return result

    def sdpa() -> Tensor:
        out = F.scaled_dot_product_attention(
            dense_q,
            dense[0],
            dense[1],
            is_causal=longest > 1,
            scale=scale,
            enable_gqa=heads != kv_heads,
        )
        return out.transpose(1, 2).reshape(tokens, heads, dim)

    causal = 0.5 if longest > 1 else 1.0
    return Case(
        op="paged_attention",
        shape=f"{sequences} x {longest} queries, context {context}",
        call=call,
        bytes_moved=keys.nbytes + values.nbytes + 2 * q.nbytes,
        flops=int(4 * tokens * context * heads * dim * causal),
        torch=sdpa,
        tunable=_tunable_attention(sizes, dtype, longest) if device.type == "cuda" else None,
    )


def _tunable_attention(sizes: Sizes, dtype: torch.dtype, queries: int) -> Tunable:
    from kernels.paged_attention.kernel import candidates, shape_class

    group = sizes.heads // sizes.kv_heads
    return Tunable(
        "paged_attention",
        shape_class(dtype, group, sizes.head_dim, queries),
        lambda: candidates(group, queries),
    )


def _layers(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Channels and inputs of a layer's products: fused q, k, v; fused gate and up; down."""
    width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
    yield from ((width, sizes.hidden), (2 * sizes.middle, sizes.hidden))
    yield (sizes.hidden, sizes.middle)


def _linear_shapes(sizes: Sizes) -> Iterator[tuple[int, int, int]]:
    for channels, inputs in _layers(sizes):
        for rows in (*sizes.rows, 2048 if sizes is LARGE else 256):
            yield rows, channels, inputs


def _quant_linear(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    from kernels.quant_linear import copies

    for rows, channels, inputs in _linear_shapes(sizes):
        x = _random((rows, inputs), device, dtype)
        weight = torch.randint(-127, 128, (channels, inputs), dtype=torch.int8, device=device)
        scale = torch.rand(channels, device=device) / (73 * inputs**0.5)
        made = copies(weight, scale, dtype)._asdict()
        dense = (weight.float() * scale[:, None]).to(dtype)
        yield Case(
            op="quant_linear",
            shape=f"{rows} x {inputs} -> {channels}",
            call=_bind(x, weight, scale, **made),
            bytes_moved=weight.nbytes + x.nbytes + rows * channels * dtype.itemsize,
            flops=2 * rows * channels * inputs,
            torch=_linear_of(x, dense),
            tunable=_tunable("quant_linear", rows, channels, inputs, dtype, device),
        )


def _group_quant_linear(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    from kernels.group_quant_linear import codes_of_byte, pack
    from kernels.group_quant_linear.reference import dequantise

    for rows, channels, inputs in _linear_shapes(sizes):
        for bits, group in ((4, 128), (8, 32)):
            x = _random((rows, inputs), device, dtype)
            scale = torch.rand(channels, inputs // group, device=device) / (6 * inputs**0.5)
            if bits == 4:
                codes = torch.randint(256, (channels, inputs // 2), device=device).to(torch.uint8)
                zero = torch.randint(16, scale.shape, device=device).to(torch.uint8)
            else:  # as in files of type Q8_0
                codes = torch.randint(-127, 128, (channels, inputs), device=device).to(torch.int8)
                zero, scale = None, scale / 12
            dense = dequantise(codes, scale, zero).to(dtype)
            packed = pack(codes, scale, zero) if device.type == "cpu" else None
            per_byte = codes_of_byte(codes)
            result_bytes = rows * channels * dtype.itemsize
            yield Case(
                op="group_quant_linear",
                shape=f"{rows} x {inputs} -> {channels}, {bits} bits in groups of {group}",
                call=_bind(x, codes, scale, zero, packed=packed),
                bytes_moved=codes.nbytes + scale.nbytes + x.nbytes + result_bytes,
                flops=2 * rows * channels * inputs,
                torch=_linear_of(x, dense),
                tunable=_tunable_groups(rows, channels, inputs, dtype, group, per_byte)
                if device.type == "cuda"
                else None,
            )


def _scaled_linear(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for rows, channels, inputs in _linear_shapes(sizes):
        x = _random((rows, inputs), device, dtype)
        weight = torch.randint(-127, 128, (channels, inputs), dtype=torch.int8, device=device)
        scale = torch.rand(channels, device=device) / (73 * inputs**0.5)
        yield Case(
            op="scaled_linear",
            shape=f"{rows} x {inputs} -> {channels}, int8",
            call=_bind(x, weight, scale),
            bytes_moved=weight.nbytes + x.nbytes + rows * channels * dtype.itemsize,
            flops=2 * rows * channels * inputs,
            torch=_linear_of(x, (weight.float() * scale[:, None]).to(dtype)),
            torch_agrees=False,
            tunable=_tunable("scaled_linear", rows, channels, inputs, torch.int8, device),
        )


def _packed_linear(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Weights of 16 bits, as C++ keeps them; GPUs have no such form."""
    from kernels.packed_linear import pack

    for rows, channels, inputs in _linear_shapes(sizes) if device.type == "cpu" else ():
        x, weight = _plain_linear(rows, channels, inputs, device, torch.float32)
        stored = weight.bfloat16()
        yield Case(
            op="packed_linear",
            shape=f"{rows} x {inputs} -> {channels}, bf16",
            call=_bind(x, pack(stored), channels=channels),
            bytes_moved=stored.nbytes + x.nbytes + 4 * rows * channels,
            flops=2 * rows * channels * inputs,
            torch=_linear_of(x, stored.float()),
        )


def _dense_linear(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """What batch invariance costs on a GPU."""
    for rows, channels, inputs in _linear_shapes(sizes) if device.type == "cuda" else ():
        x, weight = _plain_linear(rows, channels, inputs, device, dtype)
        yield Case(
            op="dense_linear",
            shape=f"{rows} x {inputs} -> {channels}",
            call=_bind(x, weight),
            bytes_moved=weight.nbytes + x.nbytes + rows * channels * dtype.itemsize,
            flops=2 * rows * channels * inputs,
            torch=_linear_of(x, weight),
        )


def _plain_linear(
    rows: int, channels: int, inputs: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weight = _random((channels, inputs), device, dtype) / inputs**0.5
    return _random((rows, inputs), device, dtype), weight


def _rope_store(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    angles = _random((4096, dim), device, torch.float32)
    for rows in sizes.rows:
        q, k, v = (_random((rows, n, dim), device, dtype) for n in (heads, kv_heads, kv_heads))
        keys, values = _random((2, rows, BLOCK_SIZE, kv_heads, dim), device, dtype)
        places = torch.arange(rows, device=device)
        yield Case(
            op="rope_store",
            shape=f"{rows} x ({heads} + 2 x {kv_heads}) x {dim}",
            call=_bind(q, k, v, angles, places, keys, values, places * BLOCK_SIZE),
            bytes_moved=2 * (q.nbytes + k.nbytes + v.nbytes),
            flops=0,
        )


def _expert_mlp(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    count, chosen, middle = 8, 2, sizes.middle // 4
    gate_up = _random((count, 2 * middle, sizes.hidden), device, dtype) / sizes.hidden**0.5
    down = _random((count, sizes.hidden, middle), device, dtype) / middle**0.5
    for rows in sizes.rows:
        x = _random((rows, sizes.hidden), device, dtype)
        experts = torch.stack(
            [torch.randperm(count, device=device)[:chosen] for _ in range(rows)]
        ).int()
        weights = torch.full(experts.shape, 1 / chosen, device=device)
        used = len(set(experts.flatten().tolist()))
        yield Case(
            op="expert_mlp",
            shape=f"{rows} x {sizes.hidden}, {chosen} of {count} experts of {middle}",
            call=_bind(x, gate_up, down, weights, experts),
            bytes_moved=(gate_up.nbytes + down.nbytes) * used // count + 2 * x.nbytes,
            flops=6 * rows * chosen * sizes.hidden * middle,
        )


def _lora_add(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    adapters, rank, size = 8, 16, sizes.hidden
    a = _random((adapters, rank, size), device, dtype) / size**0.5
    b = _random((adapters, size, rank), device, dtype)
    scales = torch.ones(adapters, device=device)
    for rows in sizes.rows:
        x = _random((rows, size), device, dtype)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        chosen = (torch.arange(rows, device=device) % adapters).int()

        yield Case(
            op="lora_add",
            shape=f"{rows} x {size}, rank {rank}, {adapters} adapters",
            call=_added_by(x, a, b, scales, starts, chosen),
            bytes_moved=(a.nbytes + b.nbytes) * min(rows, adapters) // adapters + 3 * x.nbytes,
            flops=4 * rows * rank * size,
        )


def _added_by(x: Tensor, *rest: Tensor) -> Call:
    def call(op: Callable[..., Any]) -> Tensor:
        out = torch.zeros_like(x)
        op(out, x, *rest)
        return out

    return call


def _linear_of(x: Tensor, dense: Tensor) -> Callable[[], Tensor]:
    return lambda: F.linear(x, dense)


def _tunable(
    kernel: str,
    rows: int,
    channels: int,
    inputs: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tunable | None:
    if device.type != "cuda":
        return None
    from importlib import import_module

    candidates = import_module(f"kernels.{kernel}.kernel").candidates
    shape = linear_class(rows, channels, inputs, dtype)
    return Tunable(kernel, shape, lambda: candidates(rows))


def _tunable_groups(
    rows: int, channels: int, inputs: int, dtype: torch.dtype, group: int, per_byte: int
) -> Tunable:
    from kernels.group_quant_linear.kernel import candidates, shape_class

    shape = shape_class(rows, channels, inputs, dtype, group, per_byte)
    return Tunable("group_quant_linear", shape, lambda: candidates(rows, group, per_byte))


def _rms_norm(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    weight = _random((sizes.hidden,), device, dtype)
    for rows in sizes.rows:
        x = _random((rows, sizes.hidden), device, dtype)
        yield Case(
            op="rms_norm",
            shape=f"{rows} x {sizes.hidden}",
            call=_bind(x, weight, eps=1e-5),
            bytes_moved=2 * x.nbytes,
            flops=0,
            torch=_norm_of(x, weight),
        )


def _norm_of(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: F.rms_norm(x, (x.shape[-1],), weight, eps=1e-5)


def _silu_mul(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for rows in sizes.rows:
        both = _random((rows, 2 * sizes.middle), device, dtype)
        yield Case(
            op="silu_mul",
            shape=f"{rows} x {2 * sizes.middle}",
            call=_bind(both),
            bytes_moved=both.nbytes * 3 // 2,
            flops=0,
            torch=_gate_of(both),
        )


def _gate_of(both: Tensor) -> Callable[[], Tensor]:
    gate, up = both.chunk(2, dim=-1)
    return lambda: F.silu(gate) * up


def _sample(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for rows in sizes.rows:
        for top_k, top_p in ((sizes.vocabulary, 1.0), (50, 0.9)):
            logits = torch.randn(rows, sizes.vocabulary, device=device) * 3
            columns = (
                torch.ones(rows, device=device),
                torch.full((rows,), top_k, dtype=torch.int32, device=device),
                torch.full((rows,), top_p, device=device),
                torch.zeros(rows, device=device),
                torch.arange(rows, device=device),
                torch.arange(rows, device=device),
            )
            yield Case(
                op="sample",
                shape=f"{rows} x {sizes.vocabulary}, top_k {top_k}, top_p {top_p}",
                call=_bind(logits, *columns),
                bytes_moved=logits.nbytes,
                flops=0,
                torch=_multinomial_of(logits),
                torch_agrees=False,
            )


def _multinomial_of(logits: Tensor) -> Callable[[], Tensor]:
    """Without truncation, and another draw."""
    return lambda: torch.multinomial(logits.softmax(dim=-1), 1).squeeze(1)


def _bind(*arguments: Any, **options: Any) -> Call:
    def call(op: Callable[..., Any]) -> Tensor:
        result: Tensor = op(*arguments, **options)
        return result

    return call


_BUILDERS: dict[str, Callable[[Sizes, torch.device, torch.dtype], Iterator[Case]]] = {
    "paged_attention": _paged_attention,
    "quant_linear": _quant_linear,
    "group_quant_linear": _group_quant_linear,
    "scaled_linear": _scaled_linear,
    "packed_linear": _packed_linear,
    "dense_linear": _dense_linear,
    "expert_mlp": _expert_mlp,
    "lora_add": _lora_add,
    "rms_norm": _rms_norm,
    "rope_store": _rope_store,
    "silu_mul": _silu_mul,
    "sample": _sample,
}
