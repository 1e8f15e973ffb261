"""Answers have the form that was asked for, however they are sampled, guessed or recomputed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_tokenizers import save_folder

from backends import LLM, SamplingParams, StructuredOutputsParams
from backends.errors import InvalidRequestError

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"type": "string", "maxLength": 16},
        "member": {"type": "boolean"},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
FORM = StructuredOutputsParams(json=PERSON)
ASKED = [
    "Extract name, age and city as JSON. Text: Anna Schmidt is 34 and lives in Berlin.",
    "What is 17 + 25?",
    "Tell me a story about a fox.",
]
PROMPTS = ["the quick brown fox", "numbers 1 2 3 4 and numbers 1 2 3 4", "héllo"]


@pytest.fixture(scope="module")
def small() -> LLM:
    """The bundled model of that name."""
    return LLM("bundled:small", threads=1, max_num_seqs=16)


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    """A random Llama, more of whose logits than its tokenizer has tokens."""
    return save_folder(make_checkpoint(seed=3))


def _llm(folder: Path, **options: Any) -> LLM:
    options.setdefault("speculation", {"method": "off"})
    return LLM(str(folder), dtype="float32", threads=1, **options)


def _params(**fields: Any) -> SamplingParams:
    fields = {"max_tokens": 160, "seed": 5, "structured_outputs": FORM, **fields}
    return SamplingParams(**fields)


def _answers(llm: LLM, params: SamplingParams) -> list[tuple[list[int], str | None]]:
    outputs = llm.generate(PROMPTS, params)
    return [(c.token_ids, c.finish_reason) for output in outputs for c in output.outputs]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_validate_whatever_was_asked(small: LLM, temperature: float) -> None:
    """Every choice of every prompt is a document of the schema, and ends by itself."""
    chats = [[{"role": "user", "content": text}] for text in ASKED]
    outputs = small.chat(chats, _params(temperature=temperature, n=2))
    for output in outputs:
        for choice in output.outputs:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.text), PERSON)
    first = json.loads(outputs[0].outputs[0].text)
    if temperature == 0.0:
        assert (first["age"], first["city"]) == (34, "Berlin")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_no_answer(
    folder: Path, make_checkpoint: Callable[..., Path], temperature: float
) -> None:
    """Guesses by lookup or by a draft model, which knows no grammar: token by token the same."""
    draft = save_folder(make_checkpoint(seed=4, num_hidden_layers=1, hidden_size=32, head_dim=16))
    params = _params(temperature=temperature, max_tokens=90)
    plain = _answers(_llm(folder), params)
    ways: list[dict[str, Any]] = [
        {"method": "ngram", "num_tokens": 4},
        {"method": "draft", "draft_model": str(draft), "num_tokens": 3},
    ]
    for way in ways:
        llm = _llm(folder, speculation=way)
        assert _answers(llm, params) == plain
        assert llm.engine.stats().draft_tokens > 0
    if temperature:  # The likeliest tokens of a random model go round in circles.
        assert "stop" in [why for _, why in plain]


def test_recomputed_answers_go_on_in_their_form(folder: Path) -> None:
    """Sequences that lose their blocks on the way say what they would have said."""
    params = _params(temperature=1.0, n=3)
    tight = _llm(folder, num_blocks=34, block_size=8, enable_prefix_caching=False)
    assert _answers(tight, params) == _answers(_llm(folder), params)
    assert tight.engine.stats().preemptions > 0


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"max_tokens": 4}, "length"), ({"stop": ['"name']}, "stop"), ({"min_tokens": 150}, "stop")],
)
def test_limits_and_stops_hold_beside_a_form(small: LLM, fields: dict[str, Any], why: str) -> None:
    """max_tokens and stop strings cut; min_tokens yields where only an end may come."""
    params = _params(temperature=0.0, logprobs=1, **fields)
    (answer,) = small.chat([{"role": "user", "content": ASKED[0]}], params)[0].outputs
    assert answer.finish_reason == why
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    if "min_tokens" in fields:
        jsonschema.validate(json.loads(answer.text), PERSON)


def test_form_that_grows_too_complex_refuses_its_request(small: LLM) -> None:
    """What may come next is too much to hold in mind: its caller is told; the engine goes on."""
    properties = {f"property_{number}": {"type": "string"} for number in range(800)}
    hopeless = StructuredOutputsParams(json={"type": "object", "properties": properties})
    chat = [{"role": "user", "content": ASKED[0]}]
    with pytest.raises(InvalidRequestError, match="too complex to follow"):
        small.chat(chat, _params(temperature=0.0, structured_outputs=hopeless, min_tokens=9))
    assert not small.engine.has_unfinished
    assert small.chat(chat, _params())[0].outputs[0].text
