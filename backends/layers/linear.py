"""Linear layers: y = x Wᵀ + b, with the weight plain or int8."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.decoder import PackedWeight
from kernels.quant_linear import copies, quant_linear


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
        self, codes: Tensor, scales: Tensor, bias: Tensor | None, *, dtype: torch.dtype
    ) -> None:
        """Keep codes [out, in] int8, scales [out] fp32 and bias [out]; activations are `dtype`."""
        self.codes = codes.contiguous()
        self.scales = scales.float().reshape(-1).contiguous()
        self.bias = bias
        self.dense, self.packed = copies(self.codes, self.scales, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        return quant_linear(
            x, self.codes, self.scales, self.bias, dense=self.dense, packed=self.packed
        )

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        return self.codes.numel()

    @property
    def packed_weight(self) -> PackedWeight | None:
        """The layer as the decoder in one call takes it; None where there is no packed form."""
        if self.packed is None or (self.bias is not None and self.bias.dtype != torch.float32):
            return None
        return PackedWeight(self.packed, self.scales, self.bias, self.codes.shape[1])


AnyLinear = Linear | Int8Linear


def fuse_rows(parts: Sequence[Tensor]) -> Tensor:
    """Stack the output channels of layers that share an input, so that one call computes all."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), dim=0)
