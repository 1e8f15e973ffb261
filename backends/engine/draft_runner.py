"""A small model that guesses what a large one will say, with KV blocks of its own.

Its cache follows each sequence: what the large model accepted stays, the rest is overwritten.
"""

from collections.abc import Sequence

import torch

from backends.engine.block_pool import BlockPool
from backends.engine.input_batch import InputBatch
from backends.engine.kv_cache import allocate
from backends.engine.request import Request, RequestStatus
from backends.engine.runner import ScheduledSequence
from backends.models.registry import Model


class DraftRunner:
    """Greedy continuations of whole batches; implements `speculation.draft.DraftModel`."""

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        device: torch.device,
        kv_dtype: torch.dtype,
        max_batched_tokens: int = 2048,
    ) -> None:
        """Allocate the cache.

        Args:
            max_model_len: Longest sequence it is asked about; its rotary tables cover it.
            max_batched_tokens: Most tokens of one catching-up pass.
        """
        self._model = model
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._max_batched_tokens = max_batched_tokens
        self._pool = BlockPool(num_blocks)
        self._inputs = InputBatch(
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            device=device,
        )
        self._caches = allocate(
            model.config,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=kv_dtype,
            device=device,
        )
        self._shadows: dict[Request, Request] = {}
        """Our view of each sequence: the tokens whose KV we hold, guesses included."""

    @torch.inference_mode()
    def propose(self, requests: Sequence[Request], num_tokens: int) -> list[list[int]]:
        """Guess the next `num_tokens` tokens of each sequence; [] for one it cannot hold."""
        drafts: list[list[int]] = [[] for _ in requests]
        held = [
            (draft, shadow)
            for draft, request in zip(drafts, requests, strict=True)
            if (shadow := self._follow(request, num_tokens, requests)) is not None
        ]
        if not held:
            return drafts
        newest = self._catch_up([shadow for _, shadow in held])
        for step in range(num_tokens):
            for (draft, shadow), token in zip(held, newest, strict=True):
                draft.append(token)
                shadow.token_ids.append(token)
            if step + 1 < num_tokens:
                newest = self._forward(
                    [ScheduledSequence(s, len(s.token_ids) - 1, 1) for _, s in held]
                )
        for _, shadow in held:
            shadow.num_computed_tokens = len(shadow.token_ids) - 1
        return drafts

    def forget(self, request: Request) -> None:
        """Free the blocks of a request that has ended."""
        shadow = self._shadows.pop(request, None)
        if shadow is not None:
            self._pool.release(shadow.block_ids)
            shadow.status = RequestStatus.FINISHED

    def _follow(
        self, request: Request, num_tokens: int, wanted: Sequence[Request]
    ) -> Request | None:
        """Bring our view of a sequence up to date; None if its KV does not fit.

        What we guessed and the large model accepted is kept: the views agree up to there.
        """
        end = len(request.token_ids) + num_tokens
        if end > self._max_model_len:
            return None
        shadow = self._shadows.get(request)
        if shadow is None:
            shadow = Request(request.request_id, [], request.params, 0)
            self._shadows[request] = shadow
        ours, truth = shadow.token_ids, request.token_ids
        same = shadow.num_prompt_tokens
        most = min(len(ours), len(truth))
        while same < most and ours[same] == truth[same]:
            same += 1
        shadow.num_computed_tokens = min(shadow.num_computed_tokens, same, len(truth) - 1)
        ours[same:] = truth[same:]
        shadow.num_prompt_tokens = len(truth)  # up to here the views agree for good
        missing = -(-end // self._block_size) - len(shadow.block_ids)
        if missing > self._pool.num_free:
            self._make_room(missing, set(wanted))
        if missing > self._pool.num_free:
            self.forget(request)
            return None
        if missing > 0:
            shadow.block_ids.extend(self._pool.allocate(missing))
        return shadow

    def _make_room(self, missing: int, wanted: set[Request]) -> None:
        """Drop sequences that are not asked about now, the longest unseen first."""
        for request in [r for r in self._shadows if r not in wanted]:
            if missing <= self._pool.num_free:
                return
            self.forget(request)

    def _catch_up(self, shadows: Sequence[Request]) -> list[int]:
        """Compute what we have no KV of, in passes of bounded size; return each next token."""
        newest: dict[Request, int] = {}
        room, parts = self._max_batched_tokens, list[ScheduledSequence]()
        for shadow in shadows:
            while shadow.num_computed_tokens < len(shadow.token_ids):
                start = shadow.num_computed_tokens
                count = min(room, len(shadow.token_ids) - start)
                parts.append(ScheduledSequence(shadow, start, count))
                shadow.num_computed_tokens += count
                room -= count
                if room == 0:
                    self._run(parts, newest)
                    room, parts = self._max_batched_tokens, []
        if parts:
            self._run(parts, newest)
        return [newest[shadow] for shadow in shadows]

    def _run(self, parts: Sequence[ScheduledSequence], newest: dict[Request, int]) -> None:
        """Compute one pass and note the next token of each sequence that it finishes."""
        tokens = iter(self._forward(parts))
        for part in parts:
            if part.samples:
                newest[part.request] = next(tokens)

    def _forward(self, parts: Sequence[ScheduledSequence]) -> list[int]:
        """Return the likeliest next token of each part that reaches the end of its sequence."""
        batch, rows = self._inputs.build(parts)
        if rows is not None and rows.shape[0] == 0:
            self._model.forward(batch, self._caches)
            return []
        return self._model.likeliest(batch, self._caches, rows)
