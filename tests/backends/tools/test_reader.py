"""Calls are read out of an answer the same way however it is cut into pieces."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tools.asked import Function
from backends.tools.formats import FORMATS, HERMES, LLAMA, MISTRAL, QWEN_CODER, ToolFormat
from backends.tools.reader import CallReader, read_calls

ONE = '{"name": "f", "arguments": {"a": 1}}'
TWO = '{"name": "g", "arguments": {"b": "}\\"{[", "c": [1, {"d": {}}]}}'
G = ("g", '{"b": "}\\"{[", "c": [1, {"d": {}}]}')
F = ("f", '{"a": 1}')

TYPES = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"$ref": "#/$defs/number"},
        "list": {"type": "array"},
        "maybe": {"type": ["string", "null"]},
    },
    "$defs": {"number": {"type": "integer"}},
}
FUNCTIONS = [Function("f"), Function("g"), Function("t", parameters=TYPES)]


def tags(name: str, **values: str) -> str:
    """A call as Qwen3-Coder writes it."""
    parts = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()]
    return f"<tool_call>\n<function={name}>\n{''.join(parts)}</function>\n</tool_call>"


CASES: list[tuple[ToolFormat, str, str | None, list[tuple[str, str]]]] = [
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", None, [F]),
    (HERMES, f"Let me see.\n<tool_call>{ONE}</tool_call>", "Let me see.\n", [F]),
    (HERMES, f"<tool_call>{ONE}</tool_call>\n<tool_call>{TWO}</tool_call>", None, [F, G]),
    (HERMES, f"\n\n<tool_call>{ONE}</tool_call> That is all. <x>", None, [F]),
    (HERMES, f"<tool_call>{ONE}", None, [F]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', None, [F]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', None, [F]),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>', None, [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', None, [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "é\\u00e9", "arguments": {}}', None, [("éé", "{}")]),
    (MISTRAL, f"[TOOL_CALLS][{ONE}]", None, [F]),
    (MISTRAL, f"Well. [TOOL_CALLS] [{ONE}, {TWO}] and more", "Well. ", [F, G]),
    (MISTRAL, f"[TOOL_CALLS]{ONE}", None, [F]),
    (QWEN_CODER, "Well.\n" + tags("f", a="1") + "\n" + tags("f"), "Well.\n",
     [F, ("f", "{}")]),
    (QWEN_CODER, tags("t", text="1\n</b> \"x\"\n", n="7", list="[1, {}]", maybe="null"), None,
     [("t", '{"text": "1\\n</b> \\"x\\"\\n", "n": 7, "list": [1, {}], "maybe": null}')]),
    (QWEN_CODER, tags("t", n="seven", maybe="no", other="true"), None,
     [("t", '{"n": "seven", "maybe": "no", "other": true}')]),
    (QWEN_CODER, "<tool_call><function=f><parameter=a>1</parameter></function> bye", None, [F]),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', None, [F]),
    (LLAMA, '\n<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}', None, [F]),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', None,
     [F, ("g", "{}")]),
]  # fmt: skip
TEXTS: list[tuple[ToolFormat, str]] = [
    (HERMES, ""),
    (HERMES, " \n"),
    (HERMES, "a <b> <tool_ call> {}"),
    (HERMES, "<tool_call>hello</tool_call>"),
    (HERMES, '<tool_call>{"name": "f", "argum": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (HERMES, "<tool_call>{}</tool_call>"),
    (HERMES, '{"name": "f", "arguments": {}}'),
    (HERMES, "<tool_call"),
    (MISTRAL, "[TOOL_CALLS] none"),
    (QWEN_CODER, "<tool_call>\n<functions=f>"),
    (QWEN_CODER, "<tool_call>\n<function=f\n>"),
    (LLAMA, '{"name": "Anna", "age": 34}'),
    (LLAMA, ' {"x": 1}'),
    (LLAMA, 'Like {"name": "f", "parameters": {}}'),
]


def streamed(spoken: ToolFormat, pieces: list[str], **how: Any) -> tuple[str, list[Any]]:
    """What the deltas of a stream add up to."""
    reader = CallReader(spoken, FUNCTIONS, **how)
    content, calls = "", list[Any]()
    for piece in [p for text in pieces for p in reader.feed(text)] + reader.end():
        if piece.call is None:
            content += piece.text
        elif piece.name is not None:
            assert piece.call == len(calls)
            calls.append((piece.name, piece.text))
        else:
            assert piece.call == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    return content, calls


@pytest.mark.parametrize(("spoken", "text", "content", "calls"), CASES)
def test_calls_are_read_whole_and_letter_by_letter(
    spoken: ToolFormat, text: str, content: str | None, calls: list[tuple[str, str]]
) -> None:
    """Names and arguments as the model wrote them; what stands behind a call is left out."""
    assert read_calls(spoken, text, FUNCTIONS) == (content, calls)
    assert streamed(spoken, list(text)) == (content or "", calls)


@pytest.mark.parametrize(("spoken", "text"), TEXTS)
def test_what_is_no_call_stays_content(spoken: ToolFormat, text: str) -> None:
    """Word for word, marker and all."""
    assert read_calls(spoken, text) == (text, [])
    assert streamed(spoken, list(text)) == (text, [])


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 120), max_size=12))
def test_cuts_change_nothing(case: Any, cuts: list[int]) -> None:
    """Tokens end wherever they like."""
    spoken, text, content, calls = case
    ends = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(ends)]
    assert streamed(spoken, pieces) == (content or "", calls)


@given(
    text=st.text(alphabet='<tool_cal>{}[]",:nameargus1\\ ;=f/', max_size=60),
    spoken=st.sampled_from(list(FORMATS.values())),
)
def test_no_text_is_lost_or_breaks_the_reader(text: str, spoken: ToolFormat) -> None:
    """Whatever a model writes, without a call all of it is content."""
    content, calls = streamed(spoken, list(text))
    assert calls or content == text


def test_arguments_come_as_they_are_written() -> None:
    """The first delta of a call has its name, each later one what is new of its arguments."""
    reader = CallReader(HERMES)
    assert reader.feed('Hm. <tool_call>\n{"name": "f", "argu') == [("Hm. ", None, None)]
    assert reader.feed('ments": ') == []
    assert reader.feed('{"a"') == [('{"a"', 0, "f")]
    assert reader.feed(": 1}") == [(": 1}", 0, None)]
    assert reader.feed("}\n</tool_call>\n<tool") == []
    assert reader.end() == []
    assert reader.calls == 1


def test_malformed_arguments_are_content_of_a_whole_answer() -> None:
    """As in vLLM; a stream has told of them already."""
    text = '<tool_call>{"name": "f", "arguments": {"a": hello}}</tool_call>'
    assert read_calls(HERMES, text) == (text, [])
    assert streamed(HERMES, [text]) == ("", [("f", '{"a": hello}')])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>{ONE}</tool_call><tool_call>{TWO[:30]}", None, [F, ("g", '{"b')]),
        ('Hm <tool_call>{"name": "f", "argum', "Hm ", [("f", "")]),
        ('<tool_call>{"na', '<tool_call>{"na', []),
        ("<tool_call>", "<tool_call>", []),
    ],
)
def test_cut_answer_keeps_what_it_has(
    text: str, content: str | None, calls: list[tuple[str, str]]
) -> None:
    """Arguments end where max_tokens cut them; before its name is out a call is not told of."""
    assert read_calls(HERMES, text, cut=True) == (content, calls)


@pytest.mark.parametrize("spoken", [HERMES, MISTRAL])
def test_only_the_first_call_counts_where_one_is_wanted(spoken: ToolFormat) -> None:
    """`parallel_tool_calls: false`, of a model that made two."""
    text = spoken.spell([F, G])
    assert read_calls(spoken, text) == (None, [F, G])
    assert read_calls(spoken, text, several=False) == (None, [F])
    assert streamed(spoken, list(text), several=False) == ("", [F])
