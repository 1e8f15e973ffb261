"""Logits to tokens, for a whole batch at once.

The order is vLLM's: min_tokens, logit_bias, penalties; then greedy rows take the likeliest; the
others: temperature, min_p, top_k, top_p, one draw. Reported log-probabilities are those of the raw
logits, before any of that, as OpenAI's and vLLM's are.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backends.contract import TokenLogprob
from backends.sampling.device import draw
from backends.sampling.likeliest import likeliest
from backends.sampling.logits import edit_logits
from backends.sampling.random import uniforms
from backends.sampling.state import SamplingState, SequenceRows

_CHUNK: Final = 64


class SampledRows(NamedTuple):
    """One entry for each row of the logits."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    """None where the row's sequence asks for none; empty where no sequence does."""


class _Draws(NamedTuple):
    """The rows that draw, and their parameters, as tensors."""

    rows: Tensor
    temperature: Tensor
    min_p: Tensor | None
    truncated: Tensor | None
    """Which of the drawing rows have a top_k or top_p."""
    top_k: Tensor
    top_p: Tensor
    keys: np.ndarray[tuple[int], np.dtype[np.uint64]]


class Sampler:
    """Stateless but for the parameter tensors of the last batch, kept while it stays the same."""

    def __init__(self, *, on_device: bool = False) -> None:
        """Draw with one number per row; `on_device`, with noise made beside the logits."""
        self._on_device = on_device
        self._states: list[SamplingState] = []
        self._draws: _Draws | None = None

    def sample(self, logits: Tensor, sequences: Sequence[SequenceRows]) -> SampledRows:
        """Choose a token for every row.

        Args:
            logits: [R, V] fp32, overwritten. Each sequence has len(drafts) + 1 rows, in order.
            sequences: In the order of the rows.
        """
        if all(sequence.state.plain_greedy for sequence in sequences):
            return SampledRows(likeliest(logits).tolist(), [])
        raw = _RawLogprobs(logits, sequences)
        edit_logits(logits, sequences)
        draws = None if self._on_device else self._prepare(sequences, logits)
        if self._on_device:
            states = [s.state for s in sequences for _ in range(len(s.drafts) + 1)]
            tokens = draw(logits, states, _places(sequences))
        elif draws is not None:
            tokens = _draw(logits, draws, _places(sequences))
        else:
            tokens = likeliest(logits)
        chosen: list[int] = tokens.tolist()
        return SampledRows(chosen, raw.entries(tokens))

    def _prepare(self, sequences: Sequence[SequenceRows], logits: Tensor) -> _Draws | None:
        """Return the drawing rows' parameters; None where every row is greedy."""
        states = [s.state for s in sequences for _ in range(len(s.drafts) + 1)]
        if states != self._states:
            self._states = states
            self._draws = _tensors(states, logits)
        return self._draws


def _tensors(states: Sequence[SamplingState], logits: Tensor) -> _Draws | None:
    rows = [row for row, state in enumerate(states) if not state.greedy]
    if not rows:
        return None
    vocabulary, device = logits.shape[1], logits.device
    params = [states[row].params for row in rows]
    top_k = [min(p.top_k, vocabulary) if p.top_k > 0 else vocabulary for p in params]
    truncated = [
        place
        for place, (k, p) in enumerate(zip(top_k, params, strict=True))
        if k < vocabulary or p.top_p < 1.0
    ]
    has_min_p = any(p.min_p > 0.0 for p in params)

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    return _Draws(
        rows=torch.tensor(rows, device=device),
        temperature=column([p.temperature for p in params]),
        min_p=column([p.min_p for p in params]) if has_min_p else None,
        truncated=torch.tensor(truncated, device=device) if truncated else None,
        top_k=torch.tensor([top_k[place] for place in truncated], device=device)[:, None],
        top_p=column([params[place].top_p for place in truncated]),
        keys=np.array([states[row].key for row in rows], dtype=np.uint64),
    )


def _places(sequences: Sequence[SequenceRows]) -> list[int]:
    """Return each row's place in its answer: what its draw is keyed by."""
    return [len(s.outputs) + i for s in sequences for i in range(len(s.drafts) + 1)]


def _draw(logits: Tensor, draws: _Draws, places: Sequence[int]) -> Tensor:
    """Return one token per row [R]: drawn where the row draws, else the likeliest."""
    everyone = draws.rows.shape[0] == logits.shape[0]
    tokens = None if everyone else likeliest(logits)
    scaled = (logits if everyone else logits[draws.rows]).div_(draws.temperature)
    probs = scaled.softmax(dim=-1)
    if draws.min_p is not None:
        probs.masked_fill_(probs < draws.min_p * probs.amax(dim=-1, keepdim=True), 0.0)
    if draws.truncated is not None:
        whole = draws.truncated.shape[0] == probs.shape[0]
        kept = _truncate(probs if whole else probs[draws.truncated], draws.top_k, draws.top_p)
        if whole:
            probs = kept
        else:
            probs[draws.truncated] = kept
    selected = places if everyone else [places[row] for row in draws.rows.tolist()]
    numbers = uniforms(draws.keys, np.array(selected, dtype=np.uint64))
    drawn = _invert(probs, torch.from_numpy(numbers).to(logits.device))
    if tokens is None:
        return drawn
    tokens[draws.rows] = drawn
    return tokens


def _truncate(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the top_k likeliest, then all but the fewest that reach top_p of what is left.

    Only the values are sorted; equals of the last kept token stay, so order never matters.

    Args:
        probs: [R, V].
        top_k: [R, 1] int64, 1..V.
        top_p: [R, 1].
    """
    ordered = _descending(probs)
    ranks = torch.arange(ordered.shape[1], device=probs.device)
    ordered = ordered.masked_fill(ranks >= top_k, 0.0)
    reached = ordered.cumsum(dim=-1, dtype=torch.float64)
    needed = (reached - ordered < top_p * reached[:, -1:]) & (ordered > 0)
    last = needed.sum(dim=-1, keepdim=True).clamp_(min=1) - 1
    return probs.masked_fill(probs < ordered.gather(1, last), 0.0)


def _descending(values: Tensor) -> Tensor:
    """Sort each row; on the CPU by NumPy, which sorts values without their places much faster."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)[:, ::-1].copy())
    return values.sort(dim=-1, descending=True).values


def _invert(probs: Tensor, numbers: Tensor) -> Tensor:
    """Return each row's token at quantile `numbers` [R] of its distribution, in token order.

    First the chunk of the vocabulary in which it lies, then the token in the chunk: sums of
    doubles over a whole row would cost more than everything else here.
    """
    rows, vocabulary = probs.shape
    chunk = _CHUNK if vocabulary % _CHUNK == 0 else vocabulary
    chunks = probs.view(rows, -1, chunk)
    reached = F.pad(chunks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1), (1, 0))
    target = numbers[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, target, right=True) - 1
    inside = chunks[torch.arange(rows, device=probs.device), place[:, 0]]
    within = inside.cumsum(dim=-1, dtype=torch.float64)
    # Rounding must not carry the rest of the way past the chunk's ends, to tokens ruled out.
    most = torch.nextafter(within[:, -1:], torch.zeros_like(target))
    rest = (target - reached.gather(1, place)).clamp_(min=0.0).minimum(most)
    token = torch.searchsorted(within, rest, right=True)
    return (place * chunk + token).squeeze(1)


class _RawLogprobs:
    """Log-probabilities of the raw logits, for the rows whose sequence asks for them."""

    def __init__(self, logits: Tensor, sequences: Sequence[SequenceRows]) -> None:
        asked = [s.state.params.logprobs for s in sequences for _ in range(len(s.drafts) + 1)]
        self._asked = asked
        self._rows = [row for row, count in enumerate(asked) if count is not None]
        if not self._rows:
            return
        self._index = torch.tensor(self._rows, device=logits.device)
        self._logprobs = logits[self._index].log_softmax(dim=-1)

    def entries(self, tokens: Tensor) -> list[TokenLogprob | None]:
        """Return each row's entry, given the tokens [R] that were chosen."""
        if not self._rows:
            return []
        chosen = tokens[self._index]
        values = self._logprobs.gather(1, chosen[:, None]).squeeze(1).tolist()
        most = max(self._asked[row] or 0 for row in self._rows)
        top = self._logprobs.topk(min(most, self._logprobs.shape[1]), dim=-1)
        top_ids, top_values = top.indices.tolist(), top.values.tolist()
        entries: list[TokenLogprob | None] = [None] * len(self._asked)
        for place, (row, token) in enumerate(zip(self._rows, chosen.tolist(), strict=True)):
            count = self._asked[row] or 0
            best = zip(top_ids[place][:count], top_values[place][:count], strict=True)
            entries[row] = TokenLogprob(token, values[place], tuple(best))
        return entries
