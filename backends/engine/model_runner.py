"""One step's computation: pack, one forward pass, sample, verify drafts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.engine.config import EngineConfig
from backends.engine.input_batch import InputBatch
from backends.engine.kv_cache import allocate
from backends.engine.request import Request
from backends.engine.runner import SampleResult, ScheduledSequence, SchedulerOutput
from backends.layers.attention import ForwardBatch
from backends.models.registry import Model
from backends.sampling.rejection import accepted_length
from backends.sampling.sampler import SampledRows, Sampler
from backends.sampling.state import SamplingState, SequenceRows


class ModelRunner:
    """A loaded model with its KV cache. One thread at a time may call `execute`."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        *,
        device: torch.device,
        kv_dtype: torch.dtype,
    ) -> None:
        """Allocate the cache that `config` describes.

        Args:
            model: Its rotary tables cover `config.max_model_len` and the drafts past it.
        """
        self.model = model
        self.device = device
        self._caches = allocate(
            model.config,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            dtype=kv_dtype,
            device=device,
        )
        self._inputs = InputBatch(
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len + config.speculation.num_tokens,
            device=device,
        )
        self._sampler = Sampler(on_device=device.type != "cpu")
        self._states: dict[Request, SamplingState] = {}
        self._max_states = 2 * config.max_num_seqs + 64
        self._asked_of: Tensor | None = None
        self._greedy = False

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> list[SampleResult]:
        """Compute one step; results are aligned to `output.sequences`."""
        sequences = output.sequences
        if not sequences:
            return []
        batch, rows = self._inputs.build(sequences)
        # Where all rows have logits, all sequences sample.
        sampling = sequences if rows is None else [part for part in sequences if part.samples]
        if not sampling:
            self.model.forward(batch, self._caches)
            return [SampleResult() for _ in sequences]
        if self._are_greedy(batch, sampling):
            sampled = SampledRows(self.model.likeliest(batch, self._caches, rows), [])
        else:
            logits = self.model.step(batch, self._caches, rows)
            sampled = self._sampler.sample(logits, [self._rows_of(s) for s in sampling])
        if rows is None and batch.max_query_len == 1 and not sampled.logprobs:
            return [SampleResult((token,)) for token in sampled.token_ids]
        return _results(sequences, sampled)

    def _are_greedy(self, batch: ForwardBatch, sampling: Sequence[ScheduledSequence]) -> bool:
        """Whether every sequence only wants its likeliest token; asked once while the batch stays.

        Steps that share their tensors are of the same sequences.
        """
        if batch.token_ids is not self._asked_of:
            self._asked_of = batch.token_ids
            self._greedy = all(self._state_of(part.request).plain_greedy for part in sampling)
        return self._greedy

    def _rows_of(self, sequence: ScheduledSequence) -> SequenceRows:
        request = sequence.request
        drafts = request.draft_token_ids[: sequence.num_drafts] if sequence.num_drafts else ()
        state = self._state_of(request)
        return SequenceRows(state, request.output_token_ids, drafts, request.matcher)

    def _state_of(self, request: Request) -> SamplingState:
        state = self._states.get(request)
        return self._new_state(request) if state is None else state

    def _new_state(self, request: Request) -> SamplingState:
        if len(self._states) >= self._max_states:
            self._states = {r: s for r, s in self._states.items() if not r.is_finished}
        state = SamplingState(
            request.params,
            request.prompt_token_ids,
            seed=request.seed,
            end_ids=tuple(request.stop_ids),
        )
        self._states[request] = state
        return state


def _results(sequences: Sequence[ScheduledSequence], sampled: SampledRows) -> list[SampleResult]:
    """Give each sequence its accepted drafts and the token after them."""
    tokens, logprobs = sampled
    results: list[SampleResult] = []
    row = 0
    for sequence in sequences:
        if not sequence.samples:
            results.append(SampleResult())
            continue
        drafts = sequence.num_drafts
        if not drafts:
            taken = 1
        else:
            taken = 1 + accepted_length(
                tokens[row : row + drafts + 1], sequence.request.draft_token_ids[:drafts]
            )
        entries = logprobs[row : row + taken] if logprobs else []
        results.append(
            SampleResult(
                tuple(tokens[row : row + taken]),
                tuple(entry for entry in entries if entry is not None),
            )
        )
        row += drafts + 1
    return results
