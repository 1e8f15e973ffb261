"""Speculation changes how fast tokens come, never which."""

from typing import Any

import numpy as np
import torch

from backends.contract import SamplingParams
from backends.sampling.rejection import accepted_length
from backends.sampling.sampler import Sampler
from backends.sampling.state import SamplingState, SequenceRows

VOCABULARY = 12


def test_accepted_length_is_the_common_prefix() -> None:
    """A draft stands only while all before it stood."""
    assert accepted_length([4, 5, 6], [4, 5]) == 2
    assert accepted_length([4, 9, 6], [4, 5]) == 1
    assert accepted_length([9, 5, 6], [4, 5]) == 0
    assert accepted_length([9], []) == 0


def _next_logits(context: tuple[int, ...]) -> torch.Tensor:
    """Return a made-up model's logits after `context`: any function of it will do."""
    seed = hash(context) % 2**31
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 1.5


def _generate(params: SamplingParams, seed: int, drafts: tuple[int, ...]) -> list[int]:
    """Generate three tokens, guessing `drafts` at the start and nothing afterwards."""
    sampler = Sampler()
    state = SamplingState(params, (1,), seed=seed)
    outputs: list[int] = []
    while len(outputs) < 3:
        contexts = [tuple(outputs) + drafts[:i] for i in range(len(drafts) + 1)]
        logits = torch.stack([_next_logits(context) for context in contexts])
        tokens = sampler.sample(logits, [SequenceRows(state, outputs, drafts)]).token_ids
        outputs += tokens[: 1 + accepted_length(tokens, drafts)]
        drafts = ()
    return outputs[:3]


def test_speculative_answers_equal_plain_ones_token_by_token() -> None:
    """Any draft, any parameters: the same seed gives the same answer."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.7, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"temperature": 1.3, "top_k": 4, "logit_bias": {2: 1.0}},
    ]
    for options in settings:
        params = SamplingParams(**options)
        for seed in range(30):
            plain = _generate(params, seed, ())
            assert _generate(params, seed, (plain[0], 3)) == plain
            assert _generate(params, seed, (plain[0], plain[1])) == plain
            assert _generate(params, seed, (0,)) == plain


def test_speculative_distribution_is_the_plain_one() -> None:
    """Pairs of tokens drawn through a fixed draft have the target's joint distribution."""
    count = 12_000
    first = _next_logits(()).softmax(-1)
    joint = torch.stack([first[t] * _next_logits((t,)).softmax(-1) for t in range(VOCABULARY)])
    draft = int(first.argmax())
    rows = torch.stack([_next_logits(()), _next_logits((draft,))])
    states = [SamplingState(SamplingParams(), (1,), seed=seed) for seed in range(count)]
    sampled = Sampler().sample(
        rows.repeat(count, 1), [SequenceRows(state, (), (draft,)) for state in states]
    )
    seen = np.zeros((VOCABULARY, VOCABULARY))
    refused: list[tuple[SamplingState, int]] = []
    for place, state in enumerate(states):
        pair = sampled.token_ids[2 * place : 2 * place + 2]
        if accepted_length(pair, (draft,)):
            seen[pair[0], pair[1]] += 1
        else:
            refused.append((state, pair[0]))
    logits = torch.stack([_next_logits((token,)) for _, token in refused])
    again = Sampler().sample(logits, [SequenceRows(s, (token,)) for s, token in refused])
    for (_, token), following in zip(refused, again.token_ids, strict=True):
        seen[token, following] += 1
    wanted = joint.double().numpy() * count
    common = wanted >= 5
    statistic = ((seen - wanted)[common] ** 2 / wanted[common]).sum()
    freedom = common.sum() - 1
    assert statistic < freedom + 6 * np.sqrt(2 * freedom)
    assert abs(seen / count - joint.numpy()).sum() / 2 < 0.05
