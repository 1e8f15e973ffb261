# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Handing a ragged batch's rows to programs, in Triton; imported by `kernel.py` files.

Programs are launched without knowing the lengths on the host: a sequence whose rows begin at
`starts[s]` owns the programs from `starts[s] // BLOCK + s` on, which is enough for any split of the
rows into tiles of BLOCK. `starts[-1] // BLOCK + sequences` programs serve all; some find no row.
"""

import triton
import triton.language as tl


@triton.jit
def find_sequence(starts, program, num_sequences, BLOCK: tl.constexpr):
    """The sequence that owns a program, by bisection."""
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle) // BLOCK + middle <= program:
            low = middle + 1
        else:
            high = middle
    return low - 1
