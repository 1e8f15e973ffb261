"""Forms that begin in the middle of an answer, whatever the engine does on its way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import save_folder

from backends import LLM, SamplingParams
from backends.tools.asked import read_tools
from backends.tools.formats import MISTRAL
from backends.tools.grammar import calls_form
from backends.tools.reader import read_calls

MARKER = 2
"""A special token of the vocabulary, here that of calls."""
TOOL = {
    "name": "note",
    "strict": True,
    "parameters": {
        "properties": {"text": {"type": "string", "maxLength": 24}},
        "required": ["text"],
        "additionalProperties": False,
    },
}
MOST = 120
PROMPTS = ["the quick brown fox", "numbers 1 2 3 4 and numbers 1 2 3 4", "héllo"]


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return save_folder(make_checkpoint(seed=3, max_position_embeddings=1024))


def _answers(folder: Path, **options: Any) -> tuple[LLM, list[list[int]]]:
    """Of a random model that is fond of calling."""
    asked = read_tools([{"type": "function", "function": TOOL}], "auto", False)
    assert asked is not None
    params = SamplingParams(
        max_tokens=MOST,
        temperature=1.0,
        seed=5,
        n=2,
        logit_bias={MARKER: 8.0, 5: 4.0},
        structured_outputs=calls_form(asked, MISTRAL, MARKER),
    )
    options.setdefault("speculation", {"method": "off"})
    llm = LLM(str(folder), dtype="float32", threads=1, **options)
    outputs = llm.generate(PROMPTS, params)
    return llm, [list(choice.token_ids) for output in outputs for choice in output.outputs]


def test_lazy_forms_hold_through_speculation_and_preemption(folder: Path) -> None:
    """Free text, then the marker, then nothing but calls: token by token the same however it was
    guessed or computed again."""
    plain_llm, plain = _answers(folder)
    called = 0
    for ids in plain:
        text, marker, calls = _around_marker(plain_llm, ids)
        if marker:
            called += len(ids) < MOST
            cut = len(ids) == MOST
            assert cut or read_calls(MISTRAL, MISTRAL.marker + calls)[1], (text, calls)
    assert called >= 2, "answers that end by themselves"
    guessing, guessed = _answers(folder, speculation={"method": "ngram", "num_tokens": 4})
    assert guessed == plain
    assert guessing.engine.stats().draft_tokens > 0
    tight, recomputed = _answers(folder, num_blocks=34, block_size=8, enable_prefix_caching=False)
    assert recomputed == plain
    assert tight.engine.stats().preemptions > 0


def test_chats_in_process_are_told_of_tools_in_words(folder: Path) -> None:
    """Of a model whose template knows none; and calls are words that the assistant said."""
    llm = LLM(str(folder), dtype="float32", threads=1)
    call = {"id": "x", "type": "function", "function": {"name": "note", "arguments": "{}"}}
    chat: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    talk = [*chat, {"role": "assistant", "tool_calls": [call]}]
    tools = [{"type": "function", "function": TOOL}]
    few = SamplingParams(max_tokens=1)
    sizes = [
        len(llm.chat(messages, few, tools=told)[0].prompt_token_ids)
        for messages, told in ((chat, None), (chat, tools), (talk, None))
    ]
    assert sizes[1] > sizes[0] + 50
    assert sizes[2] > sizes[0] + 20


def _around_marker(llm: LLM, ids: list[int]) -> tuple[str, bool, str]:
    if MARKER not in ids:
        return llm.tokenizer.decode(ids), False, ""
    place = ids.index(MARKER)
    return llm.tokenizer.decode(ids[:place]), True, llm.tokenizer.decode(ids[place + 1 :])
