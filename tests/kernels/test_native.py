"""The C++ paths: what building, loading and batching must keep true."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import PagedBatch, Runner, paged_batch, random

from kernels import native
from kernels.errors import KernelError
from kernels.packed_linear import pack

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")

NATIVE = Runner("native", "cpu")


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_native_attention_of_a_sequence_ignores_its_batch() -> None:
    """Bit for bit, a decode step answers the same alone and in a batch."""
    sequences = [(1, 90), (1, 7), (3, 40), (1, 300)]
    together = paged_batch(sequences, head_dim=32, query_heads=8)
    whole = together.run(NATIVE)
    starts = together.query_start_lens.tolist()
    for row, (queries, context_len) in enumerate(sequences):
        rows = slice(starts[row], starts[row + 1])
        alone = PagedBatch(
            **{
                **vars(together),
                "q": together.q[rows],
                "block_tables": together.block_tables[row : row + 1],
                "query_start_lens": torch.tensor([0, queries], dtype=torch.int32),
                "context_lens": torch.tensor([context_len], dtype=torch.int32),
                "max_query_len": queries,
                "max_context_len": context_len,
            }
        )
        assert torch.equal(alone.run(NATIVE), whole[rows])


def test_native_ops_answer_alike_on_any_threads() -> None:
    """Bit for bit, work that is large enough to be shared out gives what one thread gives."""
    x, bias = random(9, 512), random(160, seed=2)
    codes = torch.randint(-127, 128, (160, 512), dtype=torch.int8)
    halves = torch.randint(256, (160, 256)).to(torch.uint8)
    calls = {
        "paged_attention": lambda: paged_batch([(4, 400), (1, 700)], head_dim=64).run(NATIVE),
        "quant_linear": lambda: NATIVE("quant_linear", x, codes, bias),
        "group_quant_linear": lambda: NATIVE("group_quant_linear", x, halves, bias.view(160, 1)),
        "packed_linear": lambda: NATIVE(
            "packed_linear", x, pack(codes.float()), bias, channels=160
        ),
    }
    before = torch.get_num_threads()
    try:
        for name, call in calls.items():
            torch.set_num_threads(1)
            alone = call()
            torch.set_num_threads(3)
            assert native.threads_for(9 * 160 * 512) == 3
            assert torch.equal(call(), alone), name
    finally:
        torch.set_num_threads(before)


def test_native_verification_equals_plain_decode() -> None:
    """Bit for bit, several queries at once answer as one after the other."""
    batch = paged_batch([(4, 50)], head_dim=64)
    together = batch.run(NATIVE)
    for query in range(4):
        step = PagedBatch(
            **{
                **vars(batch),
                "q": batch.q[query : query + 1],
                "query_start_lens": torch.tensor([0, 1], dtype=torch.int32),
                "context_lens": torch.tensor([47 + query], dtype=torch.int32),
                "max_query_len": 1,
            }
        )
        assert torch.equal(step.run(NATIVE)[0], together[query])


def test_native_linear_of_a_row_ignores_the_other_rows() -> None:
    """Bit for bit, an fp32 row multiplies the same alone and in a batch."""
    x, scale = random(7, 150), random(33, seed=1).abs()
    weight = torch.randint(-127, 128, (33, 150), dtype=torch.int8)
    together = NATIVE("quant_linear", x, weight, scale)
    for row in range(7):
        assert torch.equal(NATIVE("quant_linear", x[row], weight, scale), together[row])


def test_native_ops_refuse_to_leave_their_tables() -> None:
    """A block, slot or position outside its table is an error, not a wild read."""
    batch = paged_batch([(1, 9)])
    missing = torch.full_like(batch.block_tables, -1)
    with pytest.raises(KernelError, match="points outside"):
        PagedBatch(**{**vars(batch), "block_tables": missing}).run(NATIVE)
    cache = torch.zeros(2, 4, 1, 8)
    with pytest.raises(KernelError, match="points outside"):
        NATIVE("store_kv", cache[0, :1], cache[0, :1], cache, cache, torch.tensor([8]))
    with pytest.raises(KernelError, match="points outside"):
        NATIVE("rope", cache[0, :1], cache[0, :1], random(5, 8), torch.tensor([5]))


def test_missing_compiler_leaves_eager_torch_and_says_so(tmp_path: Path) -> None:
    """Without a working compiler ops still run, and the log says once what they run on."""
    code = (
        "import torch; from kernels.dispatch import implementation_for; "
        "from kernels.gated_mul import silu_mul; silu_mul(torch.ones(2, 4)); "
        "print(implementation_for('cpu'))"
    )
    done = _python(code, CXX="/nonexistent/c++", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "torch_cpu", done.stderr
    assert done.stderr.count("native_kernels_unavailable") == 1


def test_native_library_is_built_once_and_shared(tmp_path: Path) -> None:
    """The cache folder holds one library after the first build, and the next process loads it."""
    code = "from kernels.native import available; assert available()"
    assert _python(code, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    (built,) = (tmp_path / "headgate").iterdir()
    before = built.stat().st_mtime_ns
    assert _python(code, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    assert built.stat().st_mtime_ns == before
