"""A rejected answer that goes along as a draft changes how fast an answer comes, never which.

The engine as it serves (scheduler, real model, sampler, verification), at temperature 1, against
the exact distribution of a model of ten tokens.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from toy_engine import LetterTokenizer, run_all, tokens_of

from backends.contract import SamplingParams
from backends.engine.config import EngineConfig, SpeculationConfig
from backends.engine.engine import Engine
from backends.engine.model_runner import ModelRunner
from backends.models.registry import load_model
from backends.speculation.speculator import Speculator

VOCAB = 10
PROMPT = [3, 1, 4, 1, 5, 9]
ANSWERS = 1200
TOKENS = 3
TEMPERATURE = 0.5


def make_engine(folder: Path) -> Engine:
    """Drafts are verified whenever there are some; nothing turns them off."""
    cpu = torch.device("cpu")
    config = EngineConfig(
        num_blocks=512,
        max_model_len=32,
        block_size=4,
        max_num_seqs=64,
        max_num_batched_tokens=1024,
        kv_bytes_per_token=1000,
        speculation=SpeculationConfig(method="ngram"),
    )
    model = load_model(folder, device=cpu, dtype=torch.float32, max_positions=32)
    return Engine(
        config,
        ModelRunner(model, config, device=cpu, kv_dtype=torch.float32),
        LetterTokenizer(),
        speculator=Speculator.from_config(config.speculation, now_ns=count(1).__next__),
        new_seed=count(1).__next__,
        started_ns=0,
    )


def exact(folder: Path) -> np.ndarray:
    """[VOCAB, VOCAB, VOCAB]: the probability of an answer, by another implementation."""
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    pairs = torch.cartesian_prod(torch.arange(VOCAB), torch.arange(VOCAB))
    rows = torch.cat([torch.tensor(PROMPT).expand(len(pairs), -1), pairs], dim=1)
    with torch.no_grad():
        chances = (model(rows).logits.double() / TEMPERATURE).softmax(-1)
    first = chances[0, -3]
    second = chances[::VOCAB, -2]
    third = chances[:, -1].reshape(VOCAB, VOCAB, VOCAB)
    return np.asarray(first[:, None, None] * second[:, :, None] * third)


def too_far(seen: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether a chi-square statistic is six deviations beyond its mean; rare cells count as one."""
    common = wanted >= 5
    observed = np.append(seen[common], seen[~common].sum())
    expected = np.append(wanted[common], wanted[~common].sum())
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    freedom = len(expected) - 1
    return bool(statistic > freedom + 6 * np.sqrt(2 * freedom))


def test_escalated_answers_have_the_distribution_of_plain_ones(
    make_checkpoint: Callable[..., Path],
) -> None:
    """Drafts of another model's taste, some right, some wrong: every token is as likely as without,
    also what follows one that was verified."""
    folder = make_checkpoint(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, seed=4)
    joint, engine = exact(folder), make_engine(folder)
    first = int(joint.sum(axis=(1, 2)).argmax())
    second = joint[first].sum(axis=1).argsort()[::-1][:3]
    taste = np.random.default_rng(8)
    accepted = rejected = 0
    seen = np.zeros((VOCAB, VOCAB, VOCAB))
    torch.set_num_threads(1)  # a second one only waits
    for start in range(0, ANSWERS, 64):
        for index in range(start, min(start + 64, ANSWERS)):
            draft = [first, int(taste.choice(second)), int(taste.integers(VOCAB))]
            engine.add_request(
                str(index),
                PROMPT,
                SamplingParams(temperature=TEMPERATURE, ignore_eos=True, max_tokens=TOKENS),
                prediction_token_ids=draft,
            )
        for events in run_all(engine).values():
            seen[tuple(tokens_of(events))] += 1
            usage = events[-1].usage
            assert usage is not None
            accepted += usage.accepted_prediction_tokens
            rejected += usage.rejected_prediction_tokens
    assert seen.sum() == ANSWERS
    assert accepted > ANSWERS / 8, "drafts were hardly tried"
    assert rejected > ANSWERS / 8
    drafted = joint[first] / joint[first].sum() * seen[first].sum()  # where there was a draft
    for found, wanted in (
        (seen.sum(axis=2), joint.sum(axis=2) * ANSWERS),
        (seen[first].sum(axis=1), drafted.sum(axis=1)),
        (seen[first], drafted),
    ):
        assert not too_far(found, wanted)
        assert too_far(found, np.roll(wanted, 1, axis=0)), "a test that cannot fail says nothing"
