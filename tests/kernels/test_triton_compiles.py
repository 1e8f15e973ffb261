"""Every Triton kernel compiles for real GPUs, with no GPU here, and fits them.

The options are those the op would launch with, so a tile size that does not fit fails here.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile"
)

SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024}
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
LAUNCH_OPTIONS = ("num_warps", "num_stages")


class Compilation(NamedTuple):
    """One kernel as the op would launch it: argument types, and constants and options."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]


def _paged_attention() -> Iterator[Compilation]:
    from kernels.paged_attention.kernel import launch_options, paged_attention_kernel

    for dtype, head_dim, group, max_query_len in (
        (torch.bfloat16, 64, 4, 1),
        (torch.bfloat16, 128, 4, 512),
        (torch.float16, 128, 8, 1),
        (torch.float16, 80, 1, 64),
        (torch.bfloat16, 256, 1, 512),
        (torch.float32, 128, 4, 512),
        (torch.float32, 64, 7, 1),
    ):
        pointer = POINTERS[dtype]
        yield Compilation(
            f"{dtype}-d{head_dim}-g{group}-q{max_query_len}",
            paged_attention_kernel,
            {
                **dict.fromkeys(("q", "k_cache", "v_cache", "out"), pointer),
                **dict.fromkeys(("block_tables", "query_start_lens", "context_lens"), "*i32"),
                "scale_log2": "fp32",
                **dict.fromkeys(
                    ("num_sequences", "q_token_stride", "q_head_stride", "table_stride"), "i32"
                ),
            },
            {
                "GROUP": group,
                "KV_HEADS": 8,
                "HEAD_DIM": head_dim,
                "BLOCK_SIZE": 16,
                **launch_options(
                    dtype, dtype, group=group, head_dim=head_dim, max_query_len=max_query_len
                ),
            },
        )


def _quant_linear() -> Iterator[Compilation]:
    from kernels.quant_linear.kernel import gemm_kernel, gemm_options, gemv_kernel, gemv_options

    sizes = dict.fromkeys(("x_stride", "rows", "channels", "inputs"), "i32")
    for dtype, pointer in POINTERS.items():
        tensors = {"x": pointer, "weight": "*i8", "scale": "*fp32", "bias": pointer, "out": pointer}
        few = {name: kind for name, kind in sizes.items() if name != "rows"}
        yield Compilation(
            f"gemv-{dtype}",
            gemv_kernel,
            {**tensors, **few},
            {"HAS_BIAS": True, **gemv_options()},
        )
        for rows in (8, 32, 512):
            yield Compilation(
                f"gemm-{dtype}-{rows}",
                gemm_kernel,
                {**tensors, **sizes},
                {"HAS_BIAS": False, **gemm_options(rows, dtype)},
            )


def _elementwise() -> Iterator[Compilation]:
    from kernels.rms_norm.kernel import num_warps, rms_norm_kernel
    from kernels.rope.kernel import rope_kernel
    from kernels.silu_mul.kernel import silu_mul_kernel
    from kernels.store_kv.kernel import store_kv_kernel

    for dtype, pointer in POINTERS.items():
        for hidden, block in ((256, 256), (4096, 4096), (5120, 8192)):
            tensors = ("x", "residual", "weight", "out", "new_residual")
            yield Compilation(
                f"rms_norm-{dtype}-{hidden}",
                rms_norm_kernel,
                {
                    **dict.fromkeys(tensors, pointer),
                    **dict.fromkeys(("x_stride", "residual_stride"), "i32"),
                    "eps": "fp32",
                },
                {"HIDDEN": hidden, "BLOCK": block, "ADD": True, "num_warps": num_warps(block)},
            )
        yield Compilation(
            f"silu_mul-{dtype}",
            silu_mul_kernel,
            {"gate_up": pointer, "out": pointer, "row_stride": "i32", "features": "i32"},
            {"BLOCK": 1024},
        )
        yield Compilation(
            f"rope-{dtype}",
            rope_kernel,
            {
                **dict.fromkeys(("q", "k", "q_out", "k_out"), pointer),
                "cos_sin_cache": "*fp32",
                "positions": "*i64",
                "q_stride": "i32",
                "k_stride": "i32",
            },
            {
                **{"HALF": 64, "BLOCK_HALF": 64, "Q_HEADS": 32, "BLOCK_Q_HEADS": 32},
                **{"K_HEADS": 8, "BLOCK_K_HEADS": 8},
            },
        )
        yield Compilation(
            f"store_kv-{dtype}",
            store_kv_kernel,
            {
                **dict.fromkeys(("k", "v", "k_cache", "v_cache"), pointer),
                "slot_mapping": "*i64",
                "k_stride": "i32",
                "v_stride": "i32",
            },
            {"ROW": 1024, "BLOCK": 1024},
        )


CASES = [*_paged_attention(), *_quant_linear(), *_elementwise()]


@pytest.mark.parametrize("capability", [80, 90], ids="sm_{}".format)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_triton_kernel_compiles_and_fits(
    case: Compilation, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cubin comes out, its shared memory fits the GPU, and no register spills."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compiled = _compile(case, capability)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_LIMIT_BYTES[capability]
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [_tool("cuobjdump"), "--dump-resource-usage", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    spilled = re.findall(r"(STACK|LOCAL):(\d+)", usage)
    assert spilled
    assert all(size == "0" for _, size in spilled), usage


def _compile(case: Compilation, capability: int) -> Any:
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


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)
