"""Linear layers: y = x Wᵀ + b, with the weight plain or int8."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.quantization.int8 import dequantize_int8
from kernels.quant_linear import quant_linear


class Linear:
    """A plain weight in the activations' dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keep weight [out, in] and bias [out]."""
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        return F.linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        return self.weight.numel()


class Int8Linear:
    """An int8 weight with one fp32 scale per output channel; activations stay as they are."""

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        *,
        dense_dtype: torch.dtype | None = None,
    ) -> None:
        """Keep codes [out, in] int8, scales [out] fp32 and bias [out].

        Args:
            dense_dtype: Also keep the weight dequantised to this dtype, where that is faster for
                large batches than multiplying by the codes.
        """
        self.codes = codes.contiguous()
        self.scales = scales.float().reshape(-1).contiguous()
        self.bias = bias
        self.dense = None if dense_dtype is None else dequantize_int8(codes, scales, dense_dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        return quant_linear(x, self.codes, self.scales, self.bias, dense=self.dense)

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        return self.codes.numel()


AnyLinear = Linear | Int8Linear


def fuse_rows(parts: Sequence[Tensor]) -> Tensor:
    """Stack the output channels of layers that share an input, so that one call computes all."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), dim=0)
