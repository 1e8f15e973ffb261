"""The engine end to end on a toy model: answers, ends, usage, aborts."""

import pytest
from toy_engine import (
    EOS,
    LetterTokenizer,
    ToyRunner,
    greedy,
    plain_answer,
    run_all,
    text_of,
    tokens_of,
)

from backends.contract import SamplingParams
from backends.engine.config import EngineConfig
from backends.engine.engine import Engine
from backends.errors import ContextLengthError, InvalidRequestError


def make_engine(**fields: object) -> Engine:
    """An engine on the toy model."""
    settings: dict[str, object] = {
        "num_blocks": 64,
        "max_model_len": 128,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "kv_bytes_per_token": 1000,
        **fields,
    }
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    return Engine(config, ToyRunner(config), LetterTokenizer())


def test_engine_answers_as_the_model_does() -> None:
    """Several prompts at once get what each would get alone."""
    engine = make_engine()
    prompts = {str(i): [1 + (i * 7 + j) % 22 for j in range(3 + 9 * i)] for i in range(6)}
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, greedy(20))
    events = run_all(engine)
    for name, prompt in prompts.items():
        assert tokens_of(events[name]) == plain_answer(prompt, 20)
    assert engine.scheduler.block_pool.num_used == 0
