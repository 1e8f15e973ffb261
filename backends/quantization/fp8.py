"""fp8 (e4m3) weights, one scale per output channel: numbers only."""

from typing import Final

import torch
from torch import Tensor

from backends.quantization.codes import Fp8Codes

LARGEST: Final = 448.0


def quantize_fp8(weight: Tensor) -> Fp8Codes:
    """Round each row of a weight [N, K] to e4m3, its largest value at 448; zeros get scale 1."""
    exact = weight.float()
    scales = exact.abs().amax(dim=1) / LARGEST
    scales = torch.where(scales > 0, scales, 1.0)
    codes = (exact / scales[:, None]).clamp(-LARGEST, LARGEST)
    return Fp8Codes(codes.to(torch.float8_e4m3fn), scales)
