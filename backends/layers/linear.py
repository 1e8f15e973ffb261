"""Linear layers: y = x Wᵀ + b, with the weight plain or int8."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.decoder import PackedWeight
from kernels.dense_linear import dense_linear
from kernels.invariance import is_promised
from kernels.packed_linear import is_faster_packed, pack, packed_linear, unpack
from kernels.quant_linear import copies, quant_linear
from kernels.quant_linear import unpack as unpack_int8


class Linear:
    """A plain weight."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        """Keep weight [out, in] and bias [out], in the form that is fastest where they lie.

        Args:
            dtype: Of the activations; the weight's own if None. A weight of fewer bits is kept so
                where it is widened as it is read.
        """
        self.channels, self.inputs = weight.shape
        self.bias = bias
        dtype = dtype or weight.dtype
        packed = is_faster_packed(weight, dtype)
        self._plain = None if packed else weight.to(dtype)
        self._packed = pack(weight) if packed else None

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        if self._packed is None:
            if is_promised() and x.is_cuda:
                return dense_linear(x, self.weight, self.bias)
            return F.linear(x, self.weight, self.bias)
        return packed_linear(x, self._packed, self.bias, channels=self.channels)

    @property
    def weight(self) -> Tensor:
        """[out, in], in the activations' dtype."""
        if self._plain is not None:
            return self._plain
        assert self._packed is not None
        return unpack(self._packed, self.channels, self.inputs).float()

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        stored = self._plain if self._packed is None else self._packed
        assert stored is not None
        return stored.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        return self.channels * self.inputs

    @property
    def packed_weight(self) -> PackedWeight | None:
        """The layer as the decoder in one call takes it; None where there is no packed form."""
        if self._packed is None or not _is_fp32(self.bias):
            return None
        return PackedWeight(self._packed, None, self.bias, self.channels, self.inputs)


class Int8Linear:
    """An int8 weight with one fp32 scale per output channel; activations stay as they are."""

    def __init__(
        self, codes: Tensor, scales: Tensor, bias: Tensor | None, *, dtype: torch.dtype
    ) -> None:
        """Keep codes [out, in] int8, scales [out] fp32 and bias [out]; activations are `dtype`.

        A packed form takes the place of the codes.
        """
        self.scales = scales.float().reshape(-1).contiguous()
        self.bias = bias
        self.dense, self.packed = copies(codes, self.scales, dtype)
        self._codes = codes.contiguous() if self.packed is None else codes.to("meta")

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        return quant_linear(
            x, self._codes, self.scales, self.bias, dense=self.dense, packed=self.packed
        )

    @property
    def codes(self) -> Tensor:
        """[out, in] int8."""
        return self._codes if self.packed is None else unpack_int8(self.packed, *self._codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        return self._codes.nbytes + self.scales.nbytes

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        return self._codes.numel()

    @property
    def packed_weight(self) -> PackedWeight | None:
        """The layer as the decoder in one call takes it; None where there is no packed form."""
        if self.packed is None or not _is_fp32(self.bias):
            return None
        return PackedWeight(self.packed, self.scales, self.bias, *self._codes.shape)


class AnyLinear(Protocol):
    """What a model needs of a linear layer, whatever its weight is kept as."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        ...

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        ...

    @property
    def packed_weight(self) -> PackedWeight | None:
        """The layer as the decoder in one call takes it; None where there is no packed form."""
        ...


def _is_fp32(bias: Tensor | None) -> bool:
    return bias is None or bias.dtype == torch.float32


def fuse_rows(parts: Sequence[Tensor]) -> Tensor:
    """Stack the output channels of layers that share an input, so that one call computes all."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), dim=0)
