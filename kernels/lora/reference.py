"""Adapters one sequence at a time."""

from torch import Tensor


def lora_add(
    out: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    query_start_lens: Tensor,
    adapters: Tensor,
) -> None:
    starts = query_start_lens.tolist()
    for sequence, adapter in enumerate(adapters.tolist()):
        if adapter >= 0:
            rows = slice(starts[sequence], starts[sequence + 1])
            low = x[rows].float() @ a[adapter].float().t()
            added = low @ b[adapter].float().t() * scales[adapter]
            out[rows] = (out[rows].float() + added).to(out.dtype)
