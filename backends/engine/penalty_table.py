"""What penalised sequences hold, counted on the device: graphs lower its logits without the host.

A step counts the token that it takes in before it lowers the logits after it. A step that is run
again (it was launched ahead in vain) counts nothing twice: each sequence's tokens are counted up
to a place, and a token at or before that place is left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt
import torch
from torch import Tensor

from backends.engine.request import Request
from backends.sampling.state import SamplingState
from kernels.sampling import penalise

if TYPE_CHECKING:
    from backends.engine.decode_graphs import DecodeRow

_UNKNOWN: Final = -2
"""No place, and not the one before any."""


class PenaltyTable:
    """A row for each of a few sequences; memory is taken when the first one comes."""

    def __init__(self, vocabulary: int, rows: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._rows = rows
        self._device = device
        self._prompts: Tensor | None = None
        self._counts = torch.empty(0, dtype=torch.int32)
        self._counted = torch.empty(0, dtype=torch.int64)
        self._held: dict[Request, int] = {}
        self._expected: dict[Request, int] = {}
        """How many tokens of its answer are counted once all launches so far are done."""

    def columns(
        self,
        rows: Sequence["DecodeRow"],
        states: Sequence[SamplingState],
        places: npt.NDArray[Any],
    ) -> dict[str, npt.ArrayLike]:
        """Get every penalised row's sequence ready; `places` counts the tokens of its answer."""
        self._allocate()
        holders = []
        for row, state, place in zip(rows, states, places.tolist(), strict=True):
            holders.append(self._holder(row.request, place) if state.penalised else -1)
        params = [state.params for state in states]
        return {
            "holders": holders,
            "repetition": [p.repetition_penalty for p in params],
            "frequency": [p.frequency_penalty for p in params],
            "presence": [p.presence_penalty for p in params],
        }

    def apply(
        self,
        logits: Tensor,
        holders: Tensor,
        token_ids: Tensor,
        places: Tensor,
        strengths: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Count each row's token, then lower its logits; nothing waits for the host."""
        self._allocate()
        assert self._prompts is not None
        # Rows that are not penalised count into a row of their own, which nobody reads.
        own = torch.where(holders >= 0, holders, self._rows)
        fresh = (places > self._counted[own]) & (holders >= 0)
        self._counts[own, token_ids] = self._counts[own, token_ids] + fresh.int()
        self._counted[own] = torch.maximum(self._counted[own], places)
        penalise(logits, self._prompts, self._counts, holders, torch.stack(strengths, dim=1))

    def _allocate(self) -> None:
        if self._prompts is None:
            shape = (self._rows + 1, self._vocabulary)
            self._prompts = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
            self._counted = torch.zeros(shape[:1], dtype=torch.int64, device=self._device)

    def _holder(self, request: Request, place: int) -> int:
        """The sequence's row, whose counts hold its answer up to the token before `place`'s."""
        row = self._held.get(request)
        if row is None:
            row = self._held[request] = self._free_row()
            self._expected[request] = _UNKNOWN
        if self._expected[request] not in (place - 1, place):
            self._write(row, request, place - 1)
        self._expected[request] = place
        return row

    def _free_row(self) -> int:
        if len(self._held) >= self._rows:
            self._held = {r: row for r, row in self._held.items() if not r.is_finished}
            self._expected = {r: self._expected[r] for r in self._held}
        taken = set(self._held.values())
        return next(row for row in range(self._rows) if row not in taken)

    def _write(self, row: int, request: Request, place: int) -> None:
        """Count a sequence anew: it is new here, or has come back from where nobody counted."""
        assert self._prompts is not None
        place = max(0, place)
        prompt = torch.tensor(request.prompt_token_ids, device=self._device)
        answer = torch.tensor(request.output_token_ids[:place], dtype=torch.int64)
        self._prompts[row] = False
        self._prompts[row, prompt] = True
        self._counts[row] = torch.bincount(answer, minlength=self._vocabulary).to(self._counts)
        self._counted[row] = place
