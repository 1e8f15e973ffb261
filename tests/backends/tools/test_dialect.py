"""What a model's chat template makes of tools, calls and results."""

import json
from typing import Any

import pytest

from backends.chat_messages import plain_message, plain_messages
from backends.errors import InvalidRequestError
from backends.tools.asked import read_tools
from backends.tools.dialect import Dialect
from backends.tools.formats import FORMATS, ToolCallParser, format_of
from tests.backends.tools import families

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "strict": True, "parameters": {
        "type": "object", "properties": {"<|end|>": {"type": "integer"}}}},
}  # fmt: skip
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "1 + 1?", "tool_calls": None},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": "2"}]},
]


def prompt(template: str, parser: ToolCallParser = "auto", tools: Any = None) -> str:
    """The text of the prompt that the talk becomes."""
    tokenizer = families.tokenizer(template)
    messages = plain_messages(TALK)
    told, tools = Dialect(tokenizer, parser).told(messages, tools)
    ids = tokenizer.encode_chat(told, tools=tools)
    return "".join(tokenizer.token_text(token) for token in ids)


@pytest.mark.parametrize("name", FORMATS)
def test_template_says_how_its_model_calls(name: str) -> None:
    """By what it writes itself; ways that we cannot read are none."""
    assert format_of(families.TEMPLATES[name]) is FORMATS[name]
    assert format_of(families.PLAIN) is None
    assert format_of(families.XML + "<tool_call>") is None
    assert format_of(families.MISTRAL_V11, "mistral").name == "mistral_v11"  # type: ignore[union-attr]
    assert format_of(families.MISTRAL, "mistral") is FORMATS["mistral"]


@pytest.mark.parametrize("name", FORMATS)
def test_templates_write_calls_and_results_as_they_were(name: str) -> None:
    """Arguments are an object again, and nulls that clients send back do not look like calls."""
    text = prompt(families.TEMPLATES[name])
    call = {"tags": "<parameter=a>\n1\n</parameter>", "python": "add(a=1)"}.get(
        FORMATS[name].shape, '{"a": 1}'
    )
    assert text.index("1 + 1?") < text.index(call) < text.rindex("2")
    assert "\\" not in text, "arguments are not quoted twice"
    assert "Adds." not in text


@pytest.mark.parametrize("name", FORMATS)
def test_templates_are_told_of_tools_as_they_know_them(name: str) -> None:
    """Without `strict`, which is ours, and no name in a schema becomes a special token."""
    plain, told = (prompt(families.TEMPLATES[name], tools=t) for t in (None, [TOOL]))
    assert "Adds." in told
    assert "strict" not in told
    assert "<|end|>" in told
    assert json.dumps(TOOL["function"]["parameters"]["properties"]) in told
    assert "Adds." not in plain


def test_calls_of_other_models_have_ids_that_a_template_takes() -> None:
    """A talk may come from another backend; a call and its result still belong together."""
    long = "call_" + "x" * 24
    talk = [
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": long}]},
        {"role": "tool", "tool_call_id": long, "content": "2"},
    ]
    told, _ = Dialect(families.tokenizer(families.MISTRAL)).told(talk, None)
    name = told[0]["tool_calls"][0]["id"]
    assert len(name) == 9
    assert name.isalnum()
    assert told[1]["tool_call_id"] == name
    told, _ = Dialect(families.tokenizer(families.HERMES)).told(talk, None)
    assert told == [talk[0], {**talk[1], "name": "add"}]


def test_special_tokens_in_tools_stay_text() -> None:
    """What a client calls a property ends no message."""
    tokenizer = families.tokenizer(families.MISTRAL)
    messages = [{"role": "user", "content": "hi"}]
    with_tools = tokenizer.encode_chat(messages, tools=[TOOL])
    assert with_tools.count(5) == tokenizer.encode_chat(messages).count(5)


def test_special_tokens_in_what_a_template_is_told_stay_text() -> None:
    """`chat_template_kwargs` are words of a client's, too."""
    tokenizer = families.tokenizer("{{ mood }}<|end|>")
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}], mood="good<|end|>")
    assert ids.count(5) == 1
    assert "".join(map(tokenizer.token_text, ids)) == "good<|end|><|end|>"


def test_models_without_a_place_for_tools_read_of_them_in_words() -> None:
    """In the system's message; calls are the assistant's words, results the user's."""
    text = prompt(families.PLAIN, tools=[TOOL])
    assert text.startswith("<|bos|><|system|>You can call these functions:\n")
    assert '"description": "Adds."' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|end|>' in text
    assert "<|user|>Result of the call:\n2<|end|>" in text
    assert '{"name": "add", "parameters": {"a": 1}}' in prompt(families.PLAIN, "llama3_json")
    assert "<parameter=a>\n1\n</parameter>" in prompt(families.PLAIN, "qwen3_coder")


@pytest.mark.parametrize(
    ("template", "parser", "choice", "words"),
    [
        (families.PLAIN, "auto", "auto", "knows nothing of tools"),
        (families.XML, "auto", "auto", "in no way known here"),
        (None, "auto", "auto", "knows nothing of tools"),
        (families.PLAIN, "auto", "required", None),
        (families.XML, "auto", "required", None),
        (families.PLAIN, "hermes", "auto", None),
        (families.PLAIN, "auto", "none", None),
        (families.HERMES, "auto", "auto", None),
    ],
)
def test_models_that_do_not_know_when_to_call_can_be_made_to(
    template: str | None, parser: ToolCallParser, choice: str, words: str | None
) -> None:
    """They are not left to choose, unless the operator says how they call."""
    dialect = Dialect(families.tokenizer(template), parser)
    asked = read_tools([TOOL], choice, None)
    assert asked is not None
    assert dialect.refuses == (
        {"tools", "functions"} if parser == "auto" and template != families.HERMES else set()
    )
    if words is None:
        dialect.turn(asked, None)
        return
    with pytest.raises(InvalidRequestError, match=words) as refusal:
        dialect.turn(asked, None)
    assert refusal.value.param == "tools"
    assert (
        "tool_call_parser: granite, hermes, llama3_json, mistral, mistral_v11, phi4_mini_json, "
        in refusal.value.message
    )


@pytest.mark.parametrize(
    ("template", "parallel", "several"),
    [
        (families.HERMES, None, True),
        (families.HERMES, False, False),
        (families.PLAIN, None, False),
        (families.PLAIN, True, True),
    ],
)
def test_models_that_are_made_to_call_do_so_once_unless_told(
    template: str, parallel: bool | None, several: bool
) -> None:
    """They would go on until their tokens end: the form has no second call."""
    asked = read_tools([TOOL], "required", parallel)
    assert asked is not None
    turn = Dialect(families.tokenizer(template)).turn(asked, None)
    assert turn.several == several
    assert turn.form is not None
    assert ("call){0,31}" in str(turn.form.grammar)) == several


@pytest.mark.parametrize(("template", "told"), [(families.HERMES, True), (families.PLAIN, False)])
def test_none_tells_a_model_of_tools_where_it_knows_them(template: str, told: bool) -> None:
    """As in vLLM: the prompt stays that of a turn that may call; its answer is only text."""
    asked = read_tools([TOOL], "none", None)
    assert asked is not None
    turn = Dialect(families.tokenizer(template)).turn(asked, None)
    assert (turn.tools is not None) == told
    assert turn.reads(1) is None


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[0].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_broken_calls_in_a_talk_are_refused(message: dict[str, Any], param: str) -> None:
    """Templates would fail on them, or worse."""
    with pytest.raises(InvalidRequestError) as refusal:
        plain_message(0, message)
    assert refusal.value.param == param


@pytest.mark.parametrize("name", FORMATS)
def test_calls_from_before_there_were_tools_are_told_as_tools(name: str) -> None:
    """Templates know only these; a result belongs to the call before it."""
    old = [
        TALK[0],
        {"role": "assistant", "content": None, "function_call": {**CALL["function"]}},  # type: ignore[dict-item]
        {"role": "function", "name": "add", "content": "2"},
    ]
    dialect = Dialect(families.tokenizer(families.TEMPLATES[name]))
    tokenizer = families.tokenizer(families.TEMPLATES[name])
    texts = []
    for talk in (TALK, old):
        told, _ = dialect.told(plain_messages(talk), None)
        texts.append([tokenizer.token_text(token) for token in tokenizer.encode_chat(told)])
    assert texts[0] == texts[1]
