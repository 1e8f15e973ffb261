"""Root-mean-square normalisation, alone and fused with the residual addition before it."""

from torch import Tensor

from kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm:
    """Scales each row to unit root mean square, then by a learned weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        """Keep weight [H]."""
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise x [T, H]."""
        return rms_norm(x, self.weight, eps=self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of x and residual, and the sum; each [T, H]."""
        return add_rms_norm(x, residual, self.weight, eps=self.eps)
