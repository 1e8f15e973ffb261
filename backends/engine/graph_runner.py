"""A model runner for GPUs: decode steps are replayed graphs, and run one step ahead of the host.

While the host turns the tokens of step n into text and schedules step n + 1, the device would wait.
So when step n holds decodes alone, step n + 1 is launched before the tokens of step n are read, in
the guess that the same sequences go on. If the scheduler then asks for some or all of them, the
answer is already on its way; the rows of sequences that ended are not looked at. What such a row
wrote lies in a slot past its sequence's end, which whoever gets the block next writes before
reading.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from backends.engine.config import EngineConfig
from backends.engine.decode_graphs import Capture, DecodeGraphs, DecodeRow, Launched
from backends.engine.model_runner import ModelRunner
from backends.engine.request import Request
from backends.engine.runner import SampleResult, ScheduledSequence, SchedulerOutput
from backends.models.registry import Model
from backends.sampling.sampler import Sampler


class _Ahead(NamedTuple):
    """A step that was launched before it was asked for."""

    launched: Launched
    tokens: Sequence[int]
    """What each row takes as its token: the last step's samples."""
    rows: dict[Request, int]
    preemptions: Sequence[int]
    """Of each row's sequence when it was launched: a later one lost the row's KV."""


class GraphModelRunner(ModelRunner):
    """Sends plain decodes through `DecodeGraphs`, everything else through `ModelRunner`."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        *,
        device: torch.device,
        kv_dtype: torch.dtype,
        capture: Capture,
    ) -> None:
        super().__init__(model, config, device=device, kv_dtype=kv_dtype)
        self._sampler = Sampler(on_device=True)  # A request's steps may go either way.
        self._block_size = config.block_size
        self.graphs = DecodeGraphs(
            model,
            self._caches,
            self._inputs.tables,
            max_rows=config.max_num_seqs,
            block_size=config.block_size,
            max_model_len=config.max_model_len + config.speculation.num_tokens,
            device=device,
            capture=capture,
        )
        self._ahead: _Ahead | None = None

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> list[SampleResult]:
        """Compute one step; results are aligned to `output.sequences`."""
        ahead, self._ahead = self._ahead, None
        sequences = output.sequences
        decodes = [sequence for sequence in sequences if self._is_plain(sequence)]
        if not decodes:
            return super().execute(output)
        launched, places = self._launch(decodes, ahead)
        others = [sequence for sequence in sequences if not self._is_plain(sequence)]
        following = None if others else self._follow(launched, decodes, places)
        rest = iter(super().execute(SchedulerOutput(others, 0)) if others else ())
        tokens = launched.tokens()
        if following is not None:
            self._ahead = _ahead(following, [tokens[place] for place in places])
        answers = iter(places)
        return [
            SampleResult((tokens[next(answers)],)) if self._is_plain(sequence) else next(rest)
            for sequence in sequences
        ]

    def _is_plain(self, sequence: ScheduledSequence) -> bool:
        """Whether a graph computes it: one token in, one out, drawn from the logits as they are."""
        if sequence.num_tokens != 1 or not sequence.samples:
            return False
        state = self._state_of(sequence.request)
        return not state.edits_logits and state.params.logprobs is None

    def _launch(
        self, decodes: Sequence[ScheduledSequence], ahead: _Ahead | None
    ) -> tuple[Launched, list[int]]:
        """Return a step that computes the decodes, and the row of each in it."""
        if ahead is not None:
            places = _places(decodes, ahead)
            if places is not None:
                return ahead.launched, places
        rows = [DecodeRow(sequence.request, sequence.start) for sequence in decodes]
        return self._start(rows), list(range(len(rows)))

    def _follow(
        self, launched: Launched, decodes: Sequence[ScheduledSequence], places: Sequence[int]
    ) -> Launched | None:
        """Launch the step after `launched`, if every sequence can go on without the scheduler."""
        for sequence in decodes:
            request = sequence.request
            held = len(request.block_ids) * self._block_size
            if request.num_remaining_tokens <= 1 or sequence.start + 1 >= held:
                return None
        return self._start(
            [
                DecodeRow(sequence.request, sequence.start + 1, source=place)
                for sequence, place in zip(decodes, places, strict=True)
            ]
        )

    def _start(self, rows: Sequence[DecodeRow]) -> Launched:
        return self.graphs.launch(rows, [self._state_of(row.request) for row in rows])


def _ahead(following: Launched, tokens: Sequence[int]) -> _Ahead:
    requests = [row.request for row in following.rows]
    return _Ahead(
        following,
        tokens,
        {request: place for place, request in enumerate(requests)},
        [request.num_preemptions for request in requests],
    )


def _places(decodes: Sequence[ScheduledSequence], ahead: _Ahead) -> list[int] | None:
    """Each decode's row in a step launched ahead; None if it does not compute all of them."""
    places = []
    for sequence in decodes:
        request, start = sequence.request, sequence.start
        place = ahead.rows.get(request)
        if (
            place is None
            or ahead.launched.rows[place].start != start
            or ahead.tokens[place] != request.token_ids[start]
            or ahead.preemptions[place] != request.num_preemptions
        ):
            return None
        places.append(place)
    return places
