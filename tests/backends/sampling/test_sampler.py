"""The sampler: each parameter does what its name says, alone and in a mixed batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.contract import SamplingParams
from backends.sampling.sampler import Sampler
from backends.sampling.state import SamplingState, SequenceRows

VOCABULARY = 192


def _logits(rows: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCABULARY, generator=generator) * scale


def _sequence(
    *,
    prompt: tuple[int, ...] = (5, 6),
    outputs: tuple[int, ...] = (),
    drafts: tuple[int, ...] = (),
    end_ids: tuple[int, ...] = (),
    seed: int = 0,
    **params: Any,
) -> SequenceRows:
    state = SamplingState(SamplingParams(**params), prompt, seed=seed, end_ids=end_ids)
    return SequenceRows(state, outputs, drafts)


def _many(logits: Tensor, count: int = 4000, **params: Any) -> np.ndarray[Any, Any]:
    """Draw `count` tokens from one row of logits, each with its own seed; return frequencies."""
    sequences = [_sequence(seed=seed, **params) for seed in range(count)]
    tokens = Sampler().sample(logits.expand(count, -1).clone(), sequences).token_ids
    return np.bincount(tokens, minlength=VOCABULARY) / count


def _chi_square_holds(frequencies: np.ndarray[Any, Any], probs: Tensor, count: int) -> bool:
    """Whether frequencies fit probabilities: the statistic is within six deviations of its mean."""
    expected = probs.double().numpy() * count
    common = expected >= 5
    observed = np.append(frequencies[common], frequencies[~common].sum()) * count
    wanted = np.append(expected[common], expected[~common].sum())
    seen = wanted > 0
    statistic = ((observed - wanted)[seen] ** 2 / wanted[seen]).sum()
    freedom = seen.sum() - 1
    return bool(statistic <= freedom + 6 * np.sqrt(2 * freedom)) and observed[~seen].sum() == 0


def test_greedy_takes_the_likeliest_whatever_the_other_settings() -> None:
    """Temperature 0 ignores top_p, top_k, min_p and the seed."""
    logits = _logits(3)
    sequences = [
        _sequence(temperature=0.0),
        _sequence(temperature=0.0, top_p=0.1, top_k=3, min_p=0.9, seed=7),
        _sequence(temperature=1e-6),
    ]
    tokens = Sampler().sample(logits.clone(), sequences).token_ids
    assert tokens == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax_at_their_temperature(temperature: float) -> None:
    """Frequencies over many seeds fit softmax(logits / temperature)."""
    logits = _logits(1, scale=1.0)
    frequencies = _many(logits, temperature=temperature)
    assert _chi_square_holds(frequencies, (logits[0] / temperature).softmax(-1), 4000)


def test_top_k_draws_from_the_k_likeliest_in_proportion() -> None:
    """With top_k = 4 exactly the four likeliest appear, renormalised."""
    logits = _logits(1)
    kept = torch.full((VOCABULARY,), -torch.inf)
    best = logits[0].topk(4)
    kept[best.indices] = best.values
    assert _chi_square_holds(_many(logits, top_k=4), kept.softmax(-1), 4000)


def test_top_p_draws_from_the_fewest_tokens_that_reach_p() -> None:
    """The kept set is the shortest prefix of the sorted probabilities with mass at least p."""
    logits = _logits(1)
    ordered = logits[0].softmax(-1).sort(descending=True)
    size = int((ordered.values.cumsum(-1) < 0.6).sum()) + 1
    kept = torch.zeros(VOCABULARY)
    kept[ordered.indices[:size]] = ordered.values[:size]
    assert _chi_square_holds(_many(logits, top_p=0.6), kept / kept.sum(), 4000)


def test_min_p_drops_tokens_under_its_share_of_the_likeliest() -> None:
    """No token below min_p times the largest probability is ever drawn, all others can be."""
    logits = _logits(1)
    probs = logits[0].softmax(-1)
    kept = torch.where(probs >= 0.2 * probs.max(), probs, 0.0)
    assert _chi_square_holds(_many(logits, min_p=0.2), kept / kept.sum(), 4000)


def test_top_k_comes_before_top_p() -> None:
    """top_p is a share of what top_k left."""
    logits = torch.full((1, VOCABULARY), -20.0)
    logits[0, :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    frequencies = _many(logits, top_k=2, top_p=0.6)
    assert set(np.flatnonzero(frequencies)) == {0, 1}
    assert set(np.flatnonzero(_many(logits, top_k=2, top_p=0.5))) == {0}


def test_repetition_presence_and_frequency_penalties_are_those_of_vllm() -> None:
    """Repetition scales prompt and answer tokens, the other two lower the answer's only."""
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :4] = torch.tensor([3.0, -3.0, 4.0, 5.0])
    sequence = _sequence(
        prompt=(0, 1),
        outputs=(2, 2, 3),
        temperature=0.0,
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    edited = logits.clone()
    Sampler().sample(edited, [sequence])
    wanted = [3.0 / 2, -3.0 * 2, 4.0 / 2 - 0.5 - 2 * 0.25, 5.0 / 2 - 0.5 - 0.25]
    assert edited[0, :4].tolist() == pytest.approx(wanted)
    assert edited[0, 4:].abs().max() == 0


def test_penalties_count_the_drafts_before_a_row() -> None:
    """Row i of a speculating sequence is penalised as if drafts[:i] were part of the answer."""
    drafts = (9, 9, 4)
    together = _logits(4)
    alone = together.clone()
    params: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 1.0, "presence_penalty": 0.3}
    Sampler().sample(together, [_sequence(outputs=(4,), drafts=drafts, **params)])
    for row in range(4):
        Sampler().sample(alone[row : row + 1], [_sequence(outputs=(4, *drafts[:row]), **params)])
    torch.testing.assert_close(together, alone)


def test_penalties_follow_an_answer_as_it_grows() -> None:
    """One state used step after step gives what a fresh one gives at each length."""
    state = _sequence(temperature=0.0, frequency_penalty=0.7).state
    outputs: list[int] = []
    for step in range(150):
        logits = _logits(1, seed=step)
        fresh = logits.clone()
        kept = Sampler().sample(logits, [SequenceRows(state, outputs)]).token_ids
        new = _sequence(outputs=tuple(outputs), temperature=0.0, frequency_penalty=0.7)
        assert kept == Sampler().sample(fresh, [new]).token_ids
        outputs.append(kept[0])


def test_logit_bias_bans_and_forces() -> None:
    """-100 keeps the likeliest token out, 100 forces another."""
    logits = _logits(2)
    best = int(logits[0].argmax())
    banned = _sequence(temperature=0.0, logit_bias={best: -100.0})
    forced = _sequence(temperature=1.0, logit_bias={11: 100.0})
    tokens = Sampler().sample(logits.clone(), [banned, forced]).token_ids
    assert tokens == [int(logits[0].topk(2).indices[1]), 11]


def test_min_tokens_bans_the_ends_until_enough_are_out() -> None:
    """End tokens cannot come before min_tokens, drafts counted, and can after."""
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 7] = 10.0
    sequence = _sequence(temperature=0.0, min_tokens=3, end_ids=(7,), outputs=(1,), drafts=(1, 1))
    tokens = Sampler().sample(logits, [sequence]).token_ids
    assert tokens[:2] != [7, 7]
    assert tokens[2] == 7


def test_logprobs_are_of_the_raw_distribution() -> None:
    """They ignore temperature, penalties and bias; the alternatives come likeliest first."""
    logits = _logits(2)
    raw = logits.log_softmax(-1)
    sequences = [
        _sequence(temperature=0.0),
        _sequence(temperature=0.3, logprobs=3, logit_bias={4: 100.0}, outputs=(1,)),
    ]
    result = Sampler().sample(logits.clone(), sequences)
    assert result.logprobs[0] is None
    entry = result.logprobs[1]
    assert entry is not None
    assert entry.token_id == result.token_ids[1] == 4
    assert entry.logprob == pytest.approx(float(raw[1, 4]), abs=1e-5)
    best = raw[1].topk(3)
    assert [token for token, _ in entry.top] == best.indices.tolist()
    assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_of_zero_report_the_token_without_alternatives() -> None:
    """logprobs = 0 means the sampled token's alone."""
    result = Sampler().sample(_logits(1), [_sequence(temperature=0.0, logprobs=0)])
    entry = result.logprobs[0]
    assert entry is not None
    assert entry.top == ()
    assert entry.token_id == result.token_ids[0]


_params = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.4, 1.0, 1.5]),
        "top_p": st.sampled_from([1.0, 0.9, 0.3]),
        "top_k": st.sampled_from([0, 1, 5, 200]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "presence_penalty": st.sampled_from([0.0, 0.8]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logit_bias": st.sampled_from([{}, {3: 5.0}]),
        "logprobs": st.sampled_from([None, 0, 2]),
        "seed": st.integers(0, 2**63),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_params, min_size=1, max_size=6), st.integers(0, 1000))
def test_a_sequence_gets_the_same_tokens_in_any_batch(
    batch: list[dict[str, Any]], logits_seed: int
) -> None:
    """Sampling all together equals sampling each alone, for every mix of parameters."""
    logits = _logits(len(batch), seed=logits_seed)
    sequences = [_sequence(outputs=(8, 3, 3), **params) for params in batch]
    together = Sampler().sample(logits.clone(), sequences)
    for row, sequence in enumerate(sequences):
        alone = Sampler().sample(logits[row : row + 1].clone(), [sequence])
        assert alone.token_ids == together.token_ids[row : row + 1]


def test_sampler_notices_when_the_batch_changes() -> None:
    """Parameters kept from the last batch are not used for another one."""
    sampler = Sampler()
    logits = _logits(2)
    hot, cold = _sequence(temperature=1.5, seed=3), _sequence(temperature=0.0)
    first = sampler.sample(logits.clone(), [hot, cold]).token_ids
    swapped = sampler.sample(logits.flip(0).clone(), [cold, hot]).token_ids
    assert swapped == first[::-1]


def test_sampler_on_device_draws_alike_in_any_batch_and_obeys_every_parameter() -> None:
    """Noise made beside the logits: bans, penalties and greedy rows hold, and a seed its answer."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * 2
    kinds = (
        SamplingParams(temperature=0.0, logit_bias={7: 100.0}, logprobs=1),
        SamplingParams(temperature=1.0, seed=4),
        SamplingParams(temperature=1.0, top_k=1, seed=5),
        SamplingParams(temperature=0.0, repetition_penalty=50.0),
    )
    best = int(logits[3].argmax())
    prompts: list[list[int]] = [[], [], [], [best]]
    rows = [
        SequenceRows(SamplingState(params, prompt, seed=params.seed or 0), [1, 2])
        for params, prompt in zip(kinds, prompts, strict=True)
    ]
    sampler = Sampler(on_device=True)
    tokens, logprobs = sampler.sample(logits.clone(), rows)
    assert tokens[0] == 7
    assert logprobs[0] is not None
    assert tokens[2] == int(logits[2].argmax())
    assert tokens[3] != best
    for index, row in enumerate(rows):
        assert sampler.sample(logits[index : index + 1].clone(), [row])[0] == [tokens[index]]
