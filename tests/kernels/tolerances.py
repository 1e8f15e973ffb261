"""How near an implementation must come to the fp32 reference: one table, by dtype."""

import torch
from torch import Tensor

# dtype of the result -> (relative, absolute). Half precisions: two roundings of the last bit.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (1e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare values by the table, and dtypes and shapes exactly."""
    relative, absolute = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=relative, atol=absolute)
