"""Thoughts are told apart from what is said the same way however an answer is cut."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.chat_template import ChatTemplate
from backends.contract import TokenEvent, TokenLogprob
from backends.errors import InvalidRequestError
from backends.reasoning import (
    FORMATS,
    ReasoningDialect,
    ReasoningParser,
    ReasoningReader,
    ReasoningTurn,
)
from backends.tokenizer import Tokenizer
from tests.backends import tiny_tokenizers

PLAIN = tiny_tokenizers.TEMPLATE
QWEN = PLAIN + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
"""The model begins its thoughts by itself, unless it is not to."""
DEEPSEEK = PLAIN + "{% if add_generation_prompt %}<think>\n{% endif %}"
"""The prompt does."""
V3 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + PLAIN
    + ("{{ '<think>' if thinking else '</think>' }}")
)
"""DeepSeek-V3.1's way."""
GRADED = "{{ 'Reasoning: ' + (reasoning_effort or 'medium') }}" + PLAIN
"""gpt-oss's."""
MAGISTRAL = "{{ '[THINK] and [/THINK]' if false }}" + PLAIN


def tokenizer(
    template: str | None, *, tokens: bool = True, special: bool = False, mistral: bool = False
) -> Tokenizer:
    """A byte-level one, with `tokens` around thoughts."""
    rust = tiny_tokenizers.byte_level()
    marks = ["[THINK]", "[/THINK]"] if mistral else ["<think>", "</think>"]
    if tokens:
        (rust.add_special_tokens if special else rust.add_tokens)(marks)
    compiled = None if template is None else ChatTemplate(template, tokens={"bos_token": "<|bos|>"})
    return Tokenizer(rust, eos_token_ids=[1, 5], chat_template=compiled)


def turn_of(
    template: str | None, parser: ReasoningParser = "auto", *, tokens: bool = True, **told: Any
) -> ReasoningTurn | None:
    """For a chat of one message."""
    made = tokenizer(template, tokens=tokens)
    prompt = made.encode_chat([{"role": "user", "content": "<think> hi <think>"}], **told)
    return ReasoningDialect(made, parser).turn(prompt)


def turn(*, inside: bool = False, name: str = "qwen3", end_id: int | None = None) -> ReasoningTurn:
    return ReasoningTurn(
        spoken=FORMATS[name], inside=inside, thoughts=None, end_id=end_id, shown_ids=frozenset()
    )


def read(how: ReasoningTurn, pieces: list[str]) -> tuple[str, str]:
    """(thoughts, what is said) of an answer in these pieces."""
    reader = ReasoningReader(how)
    told = [reader.feed(piece) for piece in pieces] + [reader.end()]
    return "".join(thoughts for thoughts, _ in told), "".join(said for _, said in told)


CASES: list[tuple[ReasoningTurn, str, str, str]] = [
    (turn(), "<think>\nHm, so.\n</think>\n\nYes.", "Hm, so.", "Yes."),
    (turn(), " \n<think>Hm</think>Yes. </think>", "Hm", "Yes. </think>"),
    (turn(), "<think>\n\n</think>\n\nYes.\n", "", "Yes.\n"),
    (turn(), "<think>a </th b < c\n\nd", "a </th b < c\n\nd", ""),
    (turn(), "<think>", "", ""),
    (turn(), "Yes <think>Hm</think>", "", "Yes <think>Hm</think>"),
    (turn(), "\n Yes", "", "\n Yes"),
    (turn(), " \n", "", " \n"),
    (turn(), "<thin", "", "<thin"),
    (turn(), "", "", ""),
    (turn(inside=True), "Hm\n\nso </think>Yes", "Hm\n\nso", "Yes"),
    (turn(inside=True), "\n</think>", "", ""),
    (turn(inside=True), "<think>\nHm</think>Yes", "<think>\nHm", "Yes"),
    (turn(inside=True), "Hm, and </thi", "Hm, and </thi", ""),
    (turn(name="mistral"), "[THINK]1 < 2[/THINK]Yes [x]", "1 < 2", "Yes [x]"),
    (turn(name="mistral"), "[1, 2]", "", "[1, 2]"),
]


@pytest.mark.parametrize(("how", "text", "thoughts", "said"), CASES)
def test_thoughts_are_read_whole_and_letter_by_letter(
    how: ReasoningTurn, text: str, thoughts: str, said: str
) -> None:
    """Only what an answer begins with are thoughts; blanks around them are nobody's."""
    assert read(how, [text]) == (thoughts, said)
    assert read(how, list(text)) == (thoughts, said)


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 30), max_size=12))
def test_cuts_change_nothing(case: Any, cuts: list[int]) -> None:
    """Tokens end wherever they like."""
    how, text, thoughts, said = case
    pieces = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    assert read(how, pieces) == (thoughts, said)


@given(
    text=st.text(alphabet="</think>[THINK] \na", max_size=40),
    inside=st.booleans(),
    name=st.sampled_from(list(FORMATS)),
    cuts=st.lists(st.integers(0, 40), max_size=8),
)
def test_no_text_is_lost(text: str, inside: bool, name: str, cuts: list[int]) -> None:
    """But for blanks and what stands around thoughts."""
    how = turn(inside=inside, name=name)
    pieces = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    thoughts, said = read(how, pieces)
    assert (thoughts, said) == read(how, [text])
    whole = "".join(text.split())
    marks = (whole.removeprefix(how.spoken.begin) if not inside else whole, whole)
    told = "".join((thoughts + said).split())
    ends = "".join((thoughts + how.spoken.end + said).split())
    assert {told, ends} & set(marks)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    known=st.booleans(),
    inside=st.booleans(),
)
def test_tokens_are_counted_and_thoughts_have_no_logprobs(
    sizes: list[int], known: bool, inside: bool
) -> None:
    """Up to the token that ends them; what is said keeps its own, whichever tokens come at once."""
    begin = [] if inside else [(10, "<think>")]
    tokens = [*begin, (1, "\n"), (2, "Hm"), (11, "</think>"), (3, "\n\n"), (4, "Yes"), (5, "")]
    reader = ReasoningReader(turn(inside=inside, end_id=11 if known else None))
    sizes = sizes if known else [1]
    thoughts, said, shown, rest = "", "", list[int](), list(tokens)
    for size in [*sizes, *[1] * len(tokens)]:
        part, rest = rest[:size], rest[size:]
        if not part:
            break
        more, left = reader.take(
            TokenEvent(
                request_id="r",
                text="".join(text for _, text in part),
                token_ids=tuple(token for token, _ in part),
                logprobs=tuple(TokenLogprob(token, -1.0) for token, _ in part),
                finish_reason=None if rest else "stop",
            )
        )
        thoughts, said = thoughts + more, said + left.text
        shown += [entry.token_id for entry in left.logprobs]
    assert (thoughts, said) == ("Hm", "Yes")
    assert shown == [3, 4, 5]
    assert reader.tokens == 3 + len(begin)


def test_thoughts_whose_end_is_spelled_out_end_as_well() -> None:
    """Though there is a token for it."""
    reader = ReasoningReader(turn(inside=True, end_id=11))
    shown = []
    for token, text in ((2, "Hm"), (3, "</"), (4, "think>"), (5, "Yes"), (6, ".")):
        event = TokenEvent(
            request_id="r", text=text, token_ids=(token,), logprobs=(TokenLogprob(token, -1.0),)
        )
        shown += [entry.token_id for entry in reader.take(event)[1].logprobs]
    assert shown == [5, 6]
    assert reader.tokens == 3


def test_answers_without_thoughts_keep_all_of_their_logprobs() -> None:
    """Also those of blanks, of which it was open what they are."""
    reader = ReasoningReader(turn(end_id=11))
    events = [
        TokenEvent(
            request_id="r", text=text, token_ids=(token,), logprobs=(TokenLogprob(token, -1.0),)
        )
        for token, text in ((3, " "), (4, "<"), (5, "b>"), (6, "!"))
    ]
    left = [reader.take(event)[1] for event in events]
    assert "".join(event.text for event in left) == " <b>!"
    assert [entry.token_id for event in left for entry in event.logprobs] == [3, 4, 5, 6]
    assert reader.tokens == 0


@pytest.mark.parametrize(
    ("template", "parser", "told", "spoken", "inside"),
    [
        (QWEN, "auto", {}, "qwen3", False),
        (QWEN, "auto", {"enable_thinking": True}, "qwen3", False),
        (DEEPSEEK, "auto", {}, "qwen3", True),
        (QWEN, "deepseek_r1", {}, "deepseek_r1", True),
        (QWEN, "deepseek_r1", {"enable_thinking": False}, "deepseek_r1", False),
        (PLAIN, "auto", {}, "qwen3", False),
        (MAGISTRAL, "auto", {}, "mistral", False),
        (QWEN, "none", {}, None, False),
    ],
)
def test_template_vocabulary_and_flag_say_how_a_model_thinks(
    template: str, parser: ReasoningParser, told: dict[str, Any], spoken: str | None, inside: bool
) -> None:
    """And the end of the prompt, whether answers begin inside; a user's words never do."""
    found = turn_of(template, parser, **told)
    assert (found and found.spoken.name) == spoken
    assert bool(found and found.inside) == inside


def test_models_without_a_word_of_thoughts_have_none() -> None:
    """Neither in template nor vocabulary."""
    assert turn_of(PLAIN, tokens=False) is None
    assert ReasoningDialect(tokenizer(None, tokens=False)).turn([3]) is None


@pytest.mark.parametrize(
    ("template", "effort", "told"),
    [
        (QWEN, None, {}),
        (QWEN, "none", {"enable_thinking": False}),
        (QWEN, "low", {"enable_thinking": True}),
        (V3, "none", {"thinking": False}),
        (V3, "medium", {"thinking": True}),
        (GRADED, "none", {"reasoning_effort": "none"}),
        (GRADED, "xhigh", {"reasoning_effort": "xhigh"}),
        (PLAIN, None, {}),
    ],
)
def test_templates_are_told_how_hard_to_think(
    template: str, effort: str | None, told: dict[str, Any]
) -> None:
    """By the name that each has for it."""
    assert ReasoningDialect(tokenizer(template)).template_kwargs(effort) == told


def test_effort_that_cannot_be_told_is_refused() -> None:
    """By those who have no name for it, and where there is none of that name."""
    for template, effort, why in ((PLAIN, "low", "not supported"), (QWEN, "huge", "'huge'")):
        with pytest.raises(InvalidRequestError, match=why) as refusal:
            ReasoningDialect(tokenizer(template)).template_kwargs(effort)
        assert refusal.value.param == "reasoning_effort"
    for nameless in (PLAIN, None):
        assert ReasoningDialect(tokenizer(nameless)).refuses == {"reasoning_effort"}


def test_forms_begin_behind_thoughts_that_tokens_tell() -> None:
    """And at once where the prompt has ended them, or no token does."""
    found = turn_of(DEEPSEEK)
    assert found is not None
    assert found.thoughts is not None
    assert found.thoughts.inside
    closed, unknown = turn_of(QWEN, enable_thinking=False), turn_of(QWEN, tokens=False)
    assert closed is not None
    assert unknown is not None
    assert closed.thoughts is None
    assert unknown.thoughts is None


def test_special_marks_are_shown_to_the_reader() -> None:
    """Where a vocabulary hides them from answers."""
    made = tokenizer(MAGISTRAL, special=True, mistral=True)
    found = ReasoningDialect(made).turn([3])
    assert found is not None
    assert found.shown_ids == {made.token_id("[THINK]"), made.token_id("[/THINK]")}
