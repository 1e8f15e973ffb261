"""The tensors of a .gguf file by their Hugging Face names, in the form that layers take."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backends.errors import ModelLoadError
from backends.gguf.blocks import Groups, dequantise, groups, is_plain, plain
from backends.gguf.config import GROUPS, LONGROPE_FACTORS, ROPE_FACTORS, paired_heads
from backends.gguf.file import GgufFile
from backends.gguf.file import Tensor as Stored
from backends.gguf.names import place_of
from backends.quantization.codes import Codes, GroupCodes, stack
from backends.quantization.int4 import pack_nibbles
from kernels.group_quant_linear import SYMMETRIC_ZERO

log = logging.getLogger(__name__)

_NO_NUMBERS = "{!r} holds what are no numbers; the file is damaged: fetch it again"
_FORGOTTEN = 2**24
"""A code that is so much less than its group's offset adds nothing to it in fp32."""


class GgufCheckpoint:
    """What `models.loader.Checkpoint` is for a folder.

    Blocks of layers stay codes, number for number. Embeddings, experts, and layers that are fused
    with floats are widened to fp16, whose error is a small part of theirs; a line in the log says
    which.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._pairs = paired_heads(file)
        self._taken: set[str] = {ROPE_FACTORS, *LONGROPE_FACTORS.values()}
        self._widened: dict[str, Stored] = {}

    @property
    def folder(self) -> Path:
        """The file, for errors."""
        return self._file.path

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that Hugging Face name."""
        return place_of(name).name in self._file.tensors

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor as floats: fp32, fp16 or bf16 as stored, else fp16.

        Raises:
            ModelLoadError: it is missing, has another shape or holds no finite numbers.
        """
        stored, raw = self._read(name, shape)
        if is_plain(stored.kind):
            return plain(raw, stored.kind).reshape(shape)
        self._widened[stored.name] = stored
        for dtype in (torch.float16, torch.float32):
            values = dequantise(raw, stored.kind, dtype)
            if values.isfinite().all():
                return values.reshape(shape)
        raise ModelLoadError(f"{str(self.folder)!r}: {_NO_NUMBERS.format(stored.name)}")

    def codes(self, names: Sequence[str], rows: Sequence[int], columns: int) -> Codes | None:
        """Read layers that share an input as codes, all as wide as the widest.

        Returns:
            None where some are floats.
        """
        kept = [GROUPS.get(self._find(f"{name}.weight").kind.name) for name in names]
        known = [kind for kind in kept if kind is not None]
        if len(known) < len(kept):
            return None
        bits, size = max(bits for bits, _ in known), min(size for _, size in known)
        parts = []
        for name, count in zip(names, rows, strict=True):
            stored, raw = self._read(f"{name}.weight", (count, columns))
            codes = _as_codes(groups(raw, stored.kind), count, bits, size)
            if not (codes.scales.isfinite().all() and _are_finite(codes.zeros)):
                raise ModelLoadError(f"{str(self.folder)!r}: {_NO_NUMBERS.format(stored.name)}")
            parts.append(codes)
        return stack(parts)

    def ignore(self, name: str) -> None:
        """Let a tensor stand unread."""
        self._taken.add(place_of(name).name)

    def check_all_taken(self) -> None:
        """Refuse a file with weights that the architecture would leave out.

        Raises:
            ModelLoadError: names the first few.
        """
        left = sorted(name for name in self._file.tensors if name not in self._taken)
        if left:
            raise ModelLoadError(
                f"{str(self.folder)!r} holds {len(left)} tensors that its architecture does not "
                f"use, so answers would be wrong: {', '.join(left[:3])}"
            )
        kinds = Counter(stored.kind.name for stored in self._widened.values())
        if kinds:
            shown = ", ".join(f"{count} of type {kind}" for kind, count in sorted(kinds.items()))
            log.info("gguf_tensors_widened: to 16-bit floats: %s; %s", shown, self.folder)

    def _find(self, name: str) -> Stored:
        stored = self._file.tensors.get(place_of(name).name)
        if stored is None:
            raise ModelLoadError(
                f"{str(self.folder)!r} has no tensor {place_of(name).name!r} ({name!r})"
            )
        return stored

    def _read(self, name: str, shape: tuple[int, ...]) -> tuple[Stored, Tensor]:
        """A tensor's rows of bytes [N, bytes of a row], in Hugging Face's order."""
        stored, expert = self._find(name), place_of(name).expert
        found, data = stored.shape, stored.data
        if expert is not None and len(found) == 3 and expert < found[0]:
            found, data = found[1:], data[expert * found[1] : (expert + 1) * found[1]]
        if found != shape:
            raise ModelLoadError(
                f"{str(self.folder)!r}: {stored.name!r} is {list(found)}, "
                f"but its metadata ask for {list(shape)}"
            )
        self._taken.add(stored.name)
        rows = shape[0] if len(shape) > 1 or is_plain(stored.kind) else 1
        raw = torch.from_numpy(np.array(data)).view(rows, -1)
        heads = self._paired(stored.name)
        if heads is None:
            return stored, raw
        pairs = raw.view(heads, -1, 2, raw.shape[1])
        return stored, pairs.transpose(1, 2).reshape(raw.shape)

    def _paired(self, name: str) -> int | None:
        """The heads whose rows stand in pairs; None: rows are in Hugging Face's order."""
        if self._pairs is None:
            return None
        if ".attn_q." in name:
            return self._pairs[0]
        return self._pairs[1] if ".attn_k." in name else None


def _as_codes(found: Groups, rows: int, bits: int, size: int) -> GroupCodes:
    """The same weights as a layer of codes has them: (code - zero) * scale.

    Where offsets are taken away instead, zero points are floats; products and differences are the
    format's but for the last bit of fp32.

    Args:
        found: Their blocks, with codes of at most `bits` bits in groups of `size` or more inputs.
        rows: Output channels.
        bits: Of a code, 4 or 8.
        size: Inputs of a group.
    """
    codes, scales, offsets = found
    zeros = None
    if offsets is not None:
        alone = scales.abs() * _FORGOTTEN <= offsets.abs()
        codes = codes.masked_fill(alone.unsqueeze(-1), 0)
        scales = torch.where(alone, torch.where(offsets == 0, 1.0, offsets.abs()), scales)
        zeros = offsets / scales
    elif bits == 4:
        codes = codes + SYMMETRIC_ZERO[torch.uint8]
    kept = codes.to(torch.uint8 if bits == 4 else torch.int8).view(rows, -1)
    repeats = codes.shape[-1] // size
    return GroupCodes(
        pack_nibbles(kept) if bits == 4 else kept,
        scales.repeat_interleave(repeats, dim=1).view(rows, -1),
        None if zeros is None else zeros.repeat_interleave(repeats, dim=1).view(rows, -1),
    )


def _are_finite(values: Tensor | None) -> bool:
    return values is None or bool(values.isfinite().all())
