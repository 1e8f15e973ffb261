"""What is read off a request: sizes, turns, wants, needs."""
# ruff: noqa: E501

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    WireError,
    decode,
)
from gateway.routing.features import Content, read

USER = {"role": "user", "content": "hello"}
RESULT = {"role": "tool", "content": "1", "tool_call_id": "x"}


def chat(**fields: Any) -> Content:
    body = {"model": "auto", "messages": [USER], **fields}
    return read(decode(ChatCompletionRequest, msgspec.json.encode(body)))


@pytest.mark.parametrize(
    ("fields", "needs", "wants"),
    [
        ({}, set(), set()),
        ({"tools": [{"type": "function"}]}, {"tools"}, {"tools"}),
        ({"tools": [{}], "tool_choice": "auto"}, {"tools"}, {"tools"}),
        ({"tools": [{}], "tool_choice": "required"}, {"tool_choice"}, {"tools"}),
        ({"tools": [{}], "parallel_tool_calls": False}, {"tools", "parallel_tool_calls"}, {"tools"}),
        ({"tools": [], "tool_choice": "none"}, set(), set()),
        ({"response_format": {"type": "text"}}, set(), set()),
        ({"response_format": {"type": "json_object"}}, {"response_format"}, {"json"}),
        ({"response_format": {"type": "json_schema"}}, {"response_format"}, {"json"}),
        ({"structured_outputs": {"json": {}}}, {"structured_outputs"}, {"json"}),
        ({"structured_outputs": {"regex": "a"}}, {"structured_outputs"}, set()),
        ({"structured_outputs": {"their": "own"}}, {"structured_outputs"}, set()),
        ({"functions": [{}]}, {"functions"}, {"tools"}),
        ({"functions": [{}], "function_call": {"name": "f"}}, {"function_call"}, {"tools"}),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "2"}]},
         {"functions"}, set()),
        ({"tools": [{}], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": []}}}, {"tools", "tool_choice"}, {"tools"}),
        ({"tools": [{}], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "required", "tools": []}}}, {"tool_choice"}, {"tools"}),
        ({"modalities": ["text"]}, set(), set()),
        ({"modalities": ["text", "audio"]}, {"modalities"}, set()),
        ({"reasoning_effort": "low"}, {"reasoning_effort"}, set()),
        ({"include_reasoning": False}, {"include_reasoning"}, set()),
        ({"include_reasoning": True}, set(), set()),
        ({"logprobs": True}, set(), {"logprobs"}),
        ({"messages": [USER, RESULT]}, {"tools"}, set()),
        ({"messages": [USER, RESULT], "tools": [{}], "tool_choice": {"type": "function"}},
         {"tool_choice"}, {"tools"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            {"image_url"},
            set(),
        ),
    ],
)  # fmt: skip
def test_chat_needs_and_wants(fields: dict[str, Any], needs: set[str], wants: set[str]) -> None:
    """Only values that ask for something beyond plain text need a capability."""
    content = chat(**fields)
    assert (set(content.needs), set(content.wants)) == (needs, wants)


def test_chat_text_is_the_last_user_turn() -> None:
    """Turns count user messages; the text to classify is the last of them."""
    content = chat(
        messages=[
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "yes?"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "se"}, {"type": "text", "text": "cond"}],
            },
        ]
    )
    assert (content.text, content.turns) == ("second", 2)
    alone = chat(messages=[{"role": "system", "content": "Say hello."}])
    assert (alone.text, alone.turns) == ("Say hello.", 0)
    assert chat(messages=[]).text == ""


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"suffix": ""}, set()),
        ({"suffix": "end"}, {"suffix"}),
        ({"echo": True}, {"echo"}),
        ({"best_of": 1}, set()),
        ({"best_of": 2, "n": 2}, set()),
        ({"best_of": 3}, {"best_of"}),
    ],
)
def test_completion_needs(fields: dict[str, Any], needs: set[str]) -> None:
    """echo, suffix and a best_of beyond n need a capability."""
    assert set(read(CompletionRequest(model="m", prompt="x", **fields)).needs) == needs


def test_prompts_of_several_kinds() -> None:
    """Estimates add up over the prompts, the bound is of the longest; token ids count exactly."""
    two = read(CompletionRequest(model="m", prompt=["a" * 40, "b" * 400]))
    one = read(CompletionRequest(model="m", prompt="b" * 400))
    assert (two.prompt_tokens, two.prompt_tokens_bound) == (110, one.prompt_tokens_bound)
    ids = read(CompletionRequest(model="m", prompt=[1, 2, 3]))
    assert (ids.prompt_tokens, ids.text) == (3, "")
    embedding = read(EmbeddingRequest(model="m", input=["hello", "world"]))
    assert (embedding.text, embedding.turns) == ("hello", 1)
    with pytest.raises(WireError, match="'prompt' mixes"):
        read(CompletionRequest(model="m", prompt=["a", 1]))


@given(st.lists(st.text(max_size=200), max_size=5))
def test_bound_is_never_below_bytes_and_estimate_never_above_bound(texts: list[str]) -> None:
    """Each byte and each message is in the bound, whatever the script."""
    request = decode(
        ChatCompletionRequest,
        msgspec.json.encode(
            {"model": "m", "messages": [{"role": "user", "content": t} for t in texts]}
        ),
    )
    content = read(request)
    assert content.prompt_tokens_bound > sum(len(t.encode()) + 8 for t in texts)
    assert content.prompt_tokens <= content.prompt_tokens_bound


def test_estimate_is_close_for_english_prose() -> None:
    """Plain prose comes out near four characters a token."""
    text = "The quick brown fox jumps over the lazy dog and runs into the forest. " * 10
    content = chat(messages=[{"role": "user", "content": text}])
    assert 150 <= content.prompt_tokens <= 210, "a GPT tokenizer makes 150 to 160 of it"
