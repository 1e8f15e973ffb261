"""A model runner for GPUs: steps of decodes and of guesses to verify are replayed graphs, and plain
decodes run one step ahead of the host.

While the host turns the tokens of step n into text and schedules step n + 1, the device would wait.
So when step n holds decodes alone, step n + 1 is launched before the tokens of step n are read, in
the guess that the same sequences go on. If the scheduler then asks for some or all of them, the
answer is already on its way; the rows of sequences that ended are not looked at. What such a row
wrote lies in a slot past its sequence's end, which whoever gets the block next writes before
reading.

What a recording would have to do for all rows though few ask for it goes beside it, through plain
steps of the same kernels and draws, which cost the launches that a replay saves:

==================  ========================================================================
leaves the graph    because
==================  ========================================================================
prompts             of any length; they fill the device by themselves
logprobs            a softmax and a top-k over the vocabulary, and up to 20 numbers a row back
logit_bias          any number of tokens of each row
min_tokens          as `logit_bias`, for the ends of an answer; only until so many are out
a grammar           its tokens decide on the host which may come next
an adapter          products of every projection with weights that differ row by row
penalised guesses   each row's counts would depend on the guesses before it
==================  ========================================================================
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
from backends.sampling.rejection import accepted_length
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
    """Sends decodes and verifications through `DecodeGraphs`, the rest through `ModelRunner`."""

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
            most_drafts=0 if config.speculation.method == "off" else config.speculation.num_tokens,
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
        verifying = any(sequence.num_drafts for sequence in decodes)
        following = None if others or verifying else self._follow(launched, decodes, places)
        rest = iter(super().execute(SchedulerOutput(others, 0)) if others else ())
        tokens = launched.tokens()
        if following is not None:
            self._ahead = _ahead(following, [tokens[place] for place in places])
        answers = iter(_answers(decodes, places, tokens))
        return [next(answers) if self._is_plain(sequence) else next(rest) for sequence in sequences]

    def _is_plain(self, sequence: ScheduledSequence) -> bool:
        """Whether a graph computes it: its newest token and guesses, drawn on the device."""
        if sequence.num_tokens != 1 + sequence.num_drafts or not sequence.samples:
            return False
        if sequence.request.adapter >= 0 or sequence.request.matcher is not None:
            return False  # What is recorded knows no adapters and no grammars.
        state = self._state_of(sequence.request)
        if state.params.logprobs is not None or state.params.logit_bias:
            return False
        if len(sequence.request.output_token_ids) < state.min_tokens:
            return False
        return not (state.penalised and sequence.num_drafts)

    def _launch(
        self, decodes: Sequence[ScheduledSequence], ahead: _Ahead | None
    ) -> tuple[Launched, list[int]]:
        """Return a step that computes the decodes, and the row of each in it."""
        if ahead is not None:
            places = _places(decodes, ahead)
            if places is not None:
                return ahead.launched, places
        rows = [
            DecodeRow(s.request, s.start, drafts=s.request.draft_token_ids[: s.num_drafts])
            for s in decodes
        ]
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


def _answers(
    decodes: Sequence[ScheduledSequence], places: Sequence[int], tokens: Sequence[int]
) -> list[SampleResult]:
    """What each sequence got: its next token, or the guesses that stand and the one after them."""
    if not any(sequence.num_drafts for sequence in decodes):
        return [SampleResult((tokens[place],)) for place in places]
    results, first = [], 0  # Nobody runs ahead of guesses: rows stand in the sequences' order.
    for sequence in decodes:
        count = 1 + sequence.num_drafts
        sampled = tokens[first : first + count]
        stand = accepted_length(sampled, sequence.request.draft_token_ids[: sequence.num_drafts])
        results.append(SampleResult(tuple(sampled[: stand + 1])))
        first += count
    return results


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
            or sequence.num_drafts
            or ahead.launched.rows[place].start != start
            or ahead.tokens[place] != request.token_ids[start]
            or ahead.preemptions[place] != request.num_preemptions
        ):
            return None
        places.append(place)
    return places
