"""Every Triton kernel as its op launches it: what can be compiled for a GPU with none here.

The options come from the op's own functions, so a tile size that does not fit shows at once.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

CAPABILITIES = (80, 90, 100)
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LAUNCH_OPTIONS = ("num_warps", "num_stages")


class Compilation(NamedTuple):
    """One kernel as the op would launch it: argument types, and constants and options."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]

    def runs_on(self, capability: int) -> bool:
        """Ampere has no fp8 e4m3."""
        return capability >= 89 or "*fp8e4nv" not in self.types.values()


class Footprint(NamedTuple):
    """What one compiled kernel takes of a GPU."""

    shared_bytes: int
    registers: int
    spilled_bytes: int


def all_cases() -> list[Compilation]:
    """One list over all ops."""
    return [
        *_paged_attention(),
        *_quant_linear(),
        *_dense_linear(),
        *_group_quant_linear(),
        *_scaled_linear(),
        *_split_k(),
        *_moe(),
        *_lora(),
        *_elementwise(),
        *_sampling(),
    ]


def _types(pointer: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, pointer)


def _paged_attention() -> Iterator[Compilation]:
    from kernels.paged_attention.kernel import (
        combine_kernel,
        combine_options,
        launch_options,
        paged_attention_kernel,
    )

    plain = {"WINDOW": False, "SOFT_CAP": False, "HAS_SINKS": False, "HAS_TREE": False}
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    int8, fp8 = torch.int8, torch.float8_e4m3fn
    for dtype, cache, head_dim, group, queries, context, variant in (
        (bf16, bf16, 64, 4, 1, 200, {}),
        (bf16, bf16, 64, 1, 1, 8192, {}),
        (bf16, bf16, 128, 4, 1, 8192, {}),
        (bf16, bf16, 128, 4, 512, 8192, {}),
        (bf16, int8, 128, 4, 1, 8192, {}),
        (bf16, fp8, 128, 4, 1, 8192, {}),
        (bf16, int8, 128, 4, 512, 8192, {}),
        (bf16, bf16, 128, 4, 8, 8192, {"HAS_TREE": True}),
        (bf16, int8, 128, 8, 8, 8192, {"HAS_TREE": True}),
        (bf16, bf16, 128, 8, 1, 8192, {"WINDOW": True, "HAS_SINKS": True}),
        (bf16, bf16, 256, 2, 512, 8192, {"WINDOW": True, "SOFT_CAP": True}),
        (fp16, fp16, 128, 8, 1, 8192, {}),
        (fp16, fp16, 80, 1, 64, 64, {}),
        (fp32, fp32, 128, 4, 512, 8192, {}),
        (fp32, fp32, 64, 7, 1, 8192, {}),
        (fp32, int8, 64, 7, 1, 8192, {}),
    ):
        pointer, options = POINTERS[dtype], {**plain, **variant}
        marks = "".join(f"-{name.lower()}" for name in variant)
        yield Compilation(
            f"paged_attention-{_short(dtype)}-{_short(cache)}-d{head_dim}-g{group}-q{queries}"
            f"-c{context}{marks}",
            paged_attention_kernel,
            {
                **_types(pointer, "q", "out"),
                **_types(POINTERS[cache], "k_cache", "v_cache"),
                **_types("*i32", "block_tables", "query_start_lens", "context_lens"),
                **_types("*fp32", "k_scale", "v_scale", "sinks", "partial", "partial_stats"),
                "tree_mask": "*i1",
                **_types("fp32", "scale", "soft_cap"),
                **_types(
                    "i32", "window", "num_tokens", "num_sequences", "q_token_stride",
                    "q_head_stride", "table_stride", "tree_stride",
                ),
            },
            {
                **{"GROUP": group, "KV_HEADS": 8, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16},
                **options,
                **launch_options(
                    dtype, cache, group=group, head_dim=head_dim,
                    max_query_len=queries, max_context_len=context,
                ),
            },
        )  # fmt: skip
    for head_dim in (64, 128, 256):
        yield Compilation(
            f"paged_attention_combine-d{head_dim}",
            combine_kernel,
            {
                **_types("*fp32", "partial", "partial_stats", "sinks"),
                "out": "*bf16",
                **_types("i32", "rows", "segments"),
            },
            {
                **{"HEADS": 32, "HEAD_DIM": head_dim, "BLOCK_D": head_dim, "HAS_SINKS": True},
                **combine_options(),
            },
        )


def _quant_linear() -> Iterator[Compilation]:
    from kernels.quant_linear.kernel import gemm_kernel, gemm_options, gemv_kernel, gemv_options

    sizes = _types("i32", "x_stride", "rows", "channels", "inputs", "part")
    few = _types("i32", "channels", "inputs", "part")
    for dtype in FLOATS:
        pointer = POINTERS[dtype]
        tensors = {"x": pointer, "weight": "*i8", "scale": "*fp32", "bias": pointer, "out": pointer}
        for split in (False, True):
            if split:
                tensors["out"] = "*fp32"
            flags = {"HAS_BIAS": not split, "SPLIT": split}
            mark = "-split" if split else ""
            yield Compilation(
                f"quant_linear_gemv-{_short(dtype)}{mark}",
                gemv_kernel,
                {**tensors, **few},
                {**flags, **gemv_options()},
            )
            for rows in (8,) if split else (8, 32, 512):
                yield Compilation(
                    f"quant_linear_gemm-{_short(dtype)}-m{rows}{mark}",
                    gemm_kernel,
                    {**tensors, **sizes},
                    {**flags, **gemm_options(rows, dtype)},
                )


def _dense_linear() -> Iterator[Compilation]:
    from kernels.invariance import ROWS
    from kernels.quant_linear.kernel import gemm_kernel, gemm_options

    for dtype in (torch.bfloat16, torch.float32):
        pointer = POINTERS[dtype]
        for split in (False, True):
            yield Compilation(
                f"dense_linear-{_short(dtype)}{'-split' if split else ''}",
                gemm_kernel,
                {
                    **_types(pointer, "x", "weight", "bias"),
                    **{"scale": "*fp32", "out": "*fp32" if split else pointer},
                    **_types("i32", "x_stride", "rows", "channels", "inputs", "part"),
                },
                {"HAS_BIAS": not split, "SPLIT": split, **gemm_options(ROWS, dtype)},
            )


def _group_quant_linear() -> Iterator[Compilation]:
    from kernels.group_quant_linear.kernel import (
        gemm_kernel,
        gemm_options,
        gemv_kernel,
        gemv_options,
    )

    few = _types("i32", "channels", "inputs", "groups", "group_size", "part")
    bf16, fp32 = torch.bfloat16, torch.float32
    # dtype, inputs of a group, codes of a byte, dtype of the zero points
    for dtype, group, per_byte, zero in (
        (bf16, 128, 2, "*u8"),
        (bf16, 16, 2, None),
        (fp32, 64, 2, "*fp32"),
        (bf16, 32, 1, None),
        (bf16, 16, 1, None),
        (fp32, 32, 1, "*fp32"),
    ):
        codes = "*u8" if per_byte == 2 else "*i8"
        tensors = {
            **_types(POINTERS[dtype], "x", "scale", "bias", "out"),
            **_types(codes, "weight"),
            **_types(zero or codes, "zero"),
        }
        flags = {
            "PER_BYTE": per_byte, "HAS_ZERO": zero is not None, "HAS_BIAS": True, "SPLIT": False,
        }  # fmt: skip
        name = f"{_short(dtype)}-{8 // per_byte}bit-group{group}"
        yield Compilation(
            f"group_quant_linear_gemv-{name}", gemv_kernel, {**tensors, **few},
            {**flags, **gemv_options(group, per_byte)},
        )  # fmt: skip
        for rows in (8, 32, 512):
            yield Compilation(
                f"group_quant_linear_gemm-{name}-m{rows}",
                gemm_kernel,
                {**tensors, **few, **_types("i32", "x_stride", "rows")},
                {**flags, **gemm_options(rows, group, dtype, per_byte)},
            )


def _scaled_linear() -> Iterator[Compilation]:
    from kernels.scaled_linear.kernel import (
        encode_kernel,
        encode_options,
        gemm_kernel,
        gemm_options,
    )

    for codes in (torch.int8, torch.float8_e4m3fn):
        pointer, int8 = POINTERS[codes], codes == torch.int8
        for inputs in (4096, 14336):
            yield Compilation(
                f"scaled_linear_encode-{_short(codes)}-k{inputs}",
                encode_kernel,
                {"x": "*bf16", "codes": pointer, "scales": "*fp32", "x_stride": "i32",
                 "inputs": "i32"},
                {"INT8": int8, **encode_options(inputs)},
            )  # fmt: skip
        for rows in (8, 32, 256, 4096):
            yield Compilation(
                f"scaled_linear_gemm-{_short(codes)}-m{rows}",
                gemm_kernel,
                {
                    **_types(pointer, "codes", "weight"),
                    **_types("*fp32", "row_scale", "scale"),
                    **_types("*bf16", "bias", "out"),
                    **_types("i32", "rows", "channels", "inputs"),
                },
                {"HAS_BIAS": True, "INT8": int8, **gemm_options(rows)},
            )


def _split_k() -> Iterator[Compilation]:
    from kernels.split_k import sum_options, sum_splits_kernel

    yield Compilation(
        "sum_splits-bf16",
        sum_splits_kernel,
        {
            **_types("*fp32", "partial", "scale"),
            **_types("*bf16", "bias", "out"),
            **_types("i32", "rows", "channels", "splits"),
        },
        {"HAS_SCALE": True, "HAS_BIAS": True, **sum_options()},
    )


def _moe() -> Iterator[Compilation]:
    from kernels.moe.kernel import grouped_kernel, grouped_options, route_kernel, route_options

    for count, top_k in ((8, 2), (128, 8)):
        yield Compilation(
            f"route_experts-e{count}-k{top_k}",
            route_kernel,
            {"logits": "*bf16", "weights": "*fp32", "experts": "*i32", "count": "i32"},
            {"TOP_K": top_k, "RENORMALISE": True, **route_options(count, top_k)},
        )
    for dtype, rows in ((torch.bfloat16, 4), (torch.bfloat16, 512), (torch.float32, 4)):
        pointer = POINTERS[dtype]
        for weigh in (False, True):
            yield Compilation(
                f"expert_mlp-{_short(dtype)}-m{rows}{'-weigh' if weigh else ''}",
                grouped_kernel,
                {
                    **_types(pointer, "x", "weight"),
                    "out": "*fp32" if weigh else pointer,
                    "slot_weights": "*fp32",
                    **_types("*i32", "slots", "block_experts"),
                    **_types(
                        "i32", "x_stride", "num_slots", "count", "channels", "inputs",
                        "slots_per_row",
                    ),
                },
                {"WEIGH": weigh, **grouped_options(rows, dtype)},
            )  # fmt: skip


def _lora() -> Iterator[Compilation]:
    from kernels.lora.kernel import expand_kernel, expand_options, shrink_kernel, shrink_options

    for dtype, rank in ((torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float32, 16)):
        pointer = POINTERS[dtype]
        shared = {"low": "*fp32", **_types("*i32", "starts", "adapters")}
        yield Compilation(
            f"lora_shrink-{_short(dtype)}-r{rank}",
            shrink_kernel,
            {
                **shared,
                **_types(pointer, "x", "a"),
                **_types("i32", "num_sequences", "x_stride", "inputs", "rank"),
            },
            shrink_options(rank, dtype),
        )
        yield Compilation(
            f"lora_expand-{_short(dtype)}-r{rank}",
            expand_kernel,
            {
                **shared,
                **_types(pointer, "b", "out"),
                "scales": "*fp32",
                **_types("i32", "num_sequences", "out_stride", "channels", "rank"),
            },
            expand_options(rank, dtype),
        )


def _elementwise() -> Iterator[Compilation]:
    from kernels.gated_mul.kernel import gated_mul_kernel
    from kernels.rms_norm.kernel import num_warps, rms_norm_kernel
    from kernels.rope.kernel import rope_kernel
    from kernels.rope_store.kernel import launch_options as rope_store_options
    from kernels.rope_store.kernel import rope_store_kernel
    from kernels.store_kv.kernel import launch_options, store_kv_kernel

    for dtype, cache in (
        *((torch.bfloat16, kept) for kept in (torch.bfloat16, torch.int8, torch.float8_e4m3fn)),
        (torch.float32, torch.float32),
    ):
        pointer = POINTERS[dtype]
        yield Compilation(
            f"rope_store-{_short(dtype)}-{_short(cache)}",
            rope_store_kernel,
            {
                **_types(pointer, "q", "k", "v", "q_out"),
                "cos_sin_cache": "*fp32",
                **_types(POINTERS[cache], "k_cache", "v_cache"),
                **_types("*fp32", "k_scale", "v_scale"),
                **_types("*i64", "positions", "slot_mapping"),
                **_types("i32", "q_stride", "k_stride", "v_stride"),
            },
            rope_store_options(32, 8, 128, cache),
        )
    for dtype in FLOATS:
        pointer = POINTERS[dtype]
        for hidden, block in ((256, 256), (4096, 4096), (5120, 8192)):
            yield Compilation(
                f"rms_norm-{_short(dtype)}-h{hidden}",
                rms_norm_kernel,
                {
                    **_types(pointer, "x", "residual", "weight", "out", "new_residual"),
                    **_types("i32", "x_stride", "residual_stride"),
                    "eps": "fp32",
                },
                {"HIDDEN": hidden, "BLOCK": block, "ADD": True, "num_warps": num_warps(block)},
            )
        for op, gelu in (("silu_mul", False), ("gelu_mul", True)):
            yield Compilation(
                f"{op}-{_short(dtype)}",
                gated_mul_kernel,
                {"gate_up": pointer, "out": pointer, "row_stride": "i32", "features": "i32"},
                {"GELU": gelu, "BLOCK": 1024},
            )
        yield Compilation(
            f"rope-{_short(dtype)}",
            rope_kernel,
            {
                **_types(pointer, "q", "k", "q_out", "k_out"),
                "cos_sin_cache": "*fp32",
                "positions": "*i64",
                **_types("i32", "q_stride", "k_stride"),
            },
            {
                **{"HALF": 64, "BLOCK_HALF": 64, "Q_HEADS": 32, "BLOCK_Q_HEADS": 32},
                **{"K_HEADS": 8, "BLOCK_K_HEADS": 8},
            },
        )
        for cache in (dtype, torch.int8, torch.float8_e4m3fn):
            yield Compilation(
                f"store_kv-{_short(dtype)}-{_short(cache)}",
                store_kv_kernel,
                {
                    **_types(pointer, "k", "v"),
                    **_types(POINTERS[cache], "k_cache", "v_cache"),
                    **_types("*fp32", "k_scale", "v_scale"),
                    "slot_mapping": "*i64",
                    **_types("i32", "k_stride", "v_stride"),
                },
                launch_options(8, 128, cache),
            )


def _sampling() -> Iterator[Compilation]:
    from kernels.sampling.kernel import (
        join_kernel,
        join_options,
        penalise_kernel,
        pick_kernel,
        pick_options,
        threshold_kernel,
        threshold_options,
    )

    rows = {
        **_types("*fp32", "temperature", "top_p", "min_p", "scratch", "thresholds", "best"),
        **_types("*i64", "seeds", "places", "out"),
        **_types("*i32", "top_k", "best_token"),
        **_types("i32", "vocabulary", "chunks"),
    }
    for dtype in (torch.float32, torch.bfloat16):
        logits = {"logits": POINTERS[dtype]}
        for name, kernel, options in (
            ("threshold", threshold_kernel, threshold_options()),
            ("pick", pick_kernel, pick_options()),
        ):
            types = {n: t for n, t in {**logits, **rows}.items() if n in kernel.arg_names}
            yield Compilation(f"sample_{name}-{_short(dtype)}", kernel, types, options)
    types = {name: kind for name, kind in rows.items() if name in join_kernel.arg_names}
    yield Compilation("sample_join", join_kernel, types, join_options(126))
    yield Compilation(
        "penalise",
        penalise_kernel,
        {
            **{"logits": "*fp32", "prompt_tokens": "*i1", "counts": "*i32"},
            **{"holders": "*i64", "strengths": "*fp32", "vocabulary": "i32"},
        },
        pick_options(),
    )


def footprint(case: Compilation, capability: int) -> Footprint:
    """Compile for sm_`capability` and read what ptxas says of the cubin."""
    import triton

    compiled = _compile(case, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [_tool(triton, "cuobjdump"), "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Footprint(
        shared_bytes=compiled.metadata.shared,
        registers=figures["REG"],
        spilled_bytes=figures["STACK"] + figures["LOCAL"],
    )


def _compile(case: Compilation, capability: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {k: v for k, v in case.constants.items() if k not in LAUNCH_OPTIONS}
    options = {k: v for k, v in case.constants.items() if k in LAUNCH_OPTIONS}
    signature = {name: case.types.get(name, "constexpr") for name in case.kernel.arg_names}
    # As at a launch: tensors are 16-byte aligned, and so are the usual strides.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(signature.values())
        if kind.startswith("*") or kind == "i32"
    }
    source = ASTSource(case.kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _tool(triton: Any, name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _short(dtype: torch.dtype) -> str:
    return {
        torch.float32: "fp32",
        torch.float16: "fp16",
        torch.bfloat16: "bf16",
        torch.int8: "int8",
        torch.float8_e4m3fn: "fp8",
    }[dtype]
