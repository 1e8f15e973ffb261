"""The schemes of quantisation by name, and how a checkpoint may be written in them. No torch."""

from typing import Final, Literal, get_args

import msgspec

QuantizeAtLoad = Literal["int8", "int4", "fp8"]
"""What plain weights can be rounded to."""
AT_LOAD: Final[tuple[str, ...]] = get_args(QuantizeAtLoad)
Scheme = Literal["int8", "w8a8", "int4", "fp8"]
"""w8a8: int8 weights whose makers mean activations to be rounded to 8 bits too."""
Layout = Literal["compressed-tensors", "gptq", "awq", "gguf"]

_MARKS: Final = {"compressed-tensors": "weight_scale", "gptq": "qweight", "awq": "qweight"}
"""A .gguf file says of each tensor how it is written."""


class StoredQuantization(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint's linear layers are quantised; some may be left out."""

    scheme: Scheme
    layout: Layout = "compressed-tensors"
    group_size: int | None = None
    """Inputs of a group under one scale; None: all of them."""
    symmetric: bool = True
    """Whether codes in groups have no zero points."""
    packed: bool = False
    """compressed-tensors: codes lie in 32-bit words, as those of 4 bits always do."""
    zero_offset: int = 0
    """What the stored zero points are less than the true ones."""
    per_tensor: bool = False
    """fp8: one scale for a whole layer."""

    def mark(self, name: str) -> str:
        """The tensor that a layer of that name has only where it is quantised."""
        return f"{name}.{_MARKS[self.layout]}"
