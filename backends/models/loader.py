"""Tensors out of safetensors files, checked by name and shape before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from backends.errors import ModelLoadError
from backends.layers.linear import AnyLinear, Int8Linear, Linear, fuse_rows
from backends.quantization.int8 import quantize_int8

_INDEX_FILE: Final = "model.safetensors.index.json"
_SINGLE_FILE: Final = "model.safetensors"
_DERIVED: Final = ".rotary_emb.inv_freq"
"""Old checkpoints store these; we compute them."""


class Checkpoint:
    """The tensors of a folder by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's safetensors, one file or sharded.

        Raises:
            ModelLoadError: a file is missing, truncated or no safetensors.
        """
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._taken: set[str] = set()
        for name in _weight_files(folder):
            opened = _open(folder / name)
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._files

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor.

        Raises:
            ModelLoadError: it is missing or has another shape.
        """
        if name not in self._files:
            raise ModelLoadError(f"{str(self.folder)!r} has no tensor {name!r}")
        try:
            tensor: Tensor = self._files[name].get_tensor(name)
        except SafetensorError as error:
            raise ModelLoadError(f"{str(self.folder)!r}: cannot read {name!r}: {error}") from error
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{str(self.folder)!r}: {name!r} is {list(tensor.shape)}, "
                f"but config.json asks for {list(shape)}"
            )
        self._taken.add(name)
        return tensor

    def ignore(self, name: str) -> None:
        """Let a tensor stand unread."""
        self._taken.add(name)

    def check_all_taken(self) -> None:
        """Refuse a checkpoint with weights that the architecture would leave out.

        Raises:
            ModelLoadError: names the first few.
        """
        left = sorted(
            name for name in self._files if name not in self._taken and _DERIVED not in name
        )
        if left:
            raise ModelLoadError(
                f"{str(self.folder)!r} holds {len(left)} tensors that its architecture does not "
                f"use, so answers would be wrong: {', '.join(left[:3])}"
            )


class WeightReader:
    """Turns a checkpoint's tensors into layers of the wanted device, dtype and quantisation."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        stored_int8: bool,
        quantize: bool,
        tied: bool,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.stored_int8 = stored_int8
        self.quantize = quantize
        self.tied = tied

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a tensor that is not quantised, in our dtype."""
        return self.checkpoint.take(name, shape).to(self.device, self.dtype)

    def linear(
        self, names: Sequence[str], rows: Sequence[int], columns: int, *, bias: bool
    ) -> AnyLinear:
        """Read layers that share an input of `columns` values and fuse them by rows.

        Args:
            names: The layers, without `.weight`.
            rows: Output channels of each.

        Raises:
            ModelLoadError: a tensor is missing or has another shape.
        """
        shapes = list(zip(names, rows, strict=True))
        offset = fuse_rows([self.take(f"{n}.bias", (r,)) for n, r in shapes]) if bias else None
        if self._is_int8(names):
            codes = fuse_rows([self._codes(name, (r, columns)) for name, r in shapes])
            scales = fuse_rows([self._scales(name, r) for name, r in shapes])
            return self._int8(codes, scales, offset)
        weight = fuse_rows(
            [self.checkpoint.take(f"{name}.weight", (r, columns)) for name, r in shapes]
        )
        if self.quantize:
            return self._int8(*quantize_int8(weight), offset)
        return Linear(weight.to(self.device, self.dtype), offset)

    def head(self, embedding: Tensor, vocabulary: int, hidden: int) -> AnyLinear:
        """Read the output layer, or build it from the embedding [V, H] where the two are tied."""
        if not self.tied:
            return self.linear(["lm_head"], [vocabulary], hidden, bias=False)
        self.checkpoint.ignore("lm_head.weight")
        if self.quantize:
            return self._int8(*quantize_int8(embedding), None)
        return Linear(embedding)

    def _is_int8(self, names: Sequence[str]) -> bool:
        """Whether the checkpoint holds these layers as int8; its config may leave some out."""
        scaled = [f"{name}.weight_scale" in self.checkpoint for name in names]
        if self.stored_int8 and any(scaled) and not all(scaled):
            missing = names[scaled.index(False)]
            raise ModelLoadError(
                f"{str(self.checkpoint.folder)!r} has no tensor '{missing}.weight_scale', though "
                "the layers it is fused with are int8"
            )
        return self.stored_int8 and all(scaled)

    def _codes(self, name: str, shape: tuple[int, int]) -> Tensor:
        codes = self.checkpoint.take(f"{name}.weight", shape)
        if codes.dtype != torch.int8:
            raise ModelLoadError(
                f"{str(self.checkpoint.folder)!r}: '{name}.weight' is {codes.dtype}, but "
                "config.json says the weights are int8"
            )
        return codes

    def _scales(self, name: str, rows: int) -> Tensor:
        return self.checkpoint.take(f"{name}.weight_scale", (rows, 1)).float().reshape(-1)

    def _int8(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Int8Linear:
        return Int8Linear(codes.to(self.device), scales.to(self.device), bias, dtype=self.dtype)


def _weight_files(folder: Path) -> list[str]:
    """Name the folder's weight files."""
    index = folder / _INDEX_FILE
    if (folder / _SINGLE_FILE).is_file():
        return [_SINGLE_FILE]
    if not index.is_file():
        raise ModelLoadError(
            f"{str(folder)!r} has neither {_SINGLE_FILE} nor {_INDEX_FILE}; "
            "convert the weights to safetensors"
        )
    try:
        content = msgspec.json.decode(index.read_bytes(), type=dict[str, Any])
        names = sorted(set(msgspec.convert(content.get("weight_map"), dict[str, str]).values()))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ModelLoadError(f"{str(index)!r} is no index of safetensors: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelLoadError(f"{str(index)!r} names {name!r}, which is not in the folder")
    return names


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{str(file)!r} is truncated or no safetensors file ({error}); fetch it again"
        ) from error
