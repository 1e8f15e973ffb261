"""Models that think aloud before they answer: what they think, apart from what they say.

===========  ======================================================================================
qwen3        `<think>…</think>`, begun by the model or by its prompt: Qwen 3, QwQ, DeepSeek-R1 …
deepseek_r1  the same, and an answer begins inside even if neither has written `<think>`
mistral      `[THINK]…[/THINK]`: Magistral, Ministral 3
===========  ======================================================================================

The names are those of vLLM's parsers. Blanks around thoughts, and before what follows them, are
left out.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from backends.contract import TokenEvent, TokenLogprob
from backends.errors import InvalidRequestError
from backends.sampling.grammar import Thoughts

ReasoningParser = Literal["auto", "none", "deepseek_r1", "mistral", "qwen3"]

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_EFFORT: Final = "reasoning_effort"
_SWITCHES: Final = ("enable_thinking", "thinking")
"""What chat templates call whether to think: Qwen's and GLM's, and DeepSeek's."""
_TAIL_TOKENS: Final = 16
"""Of a prompt: what it may begin or end thoughts with, and blanks."""


class ReasoningFormat(Struct, frozen=True, kw_only=True):
    """One way to set thoughts apart."""

    name: str
    begin: str
    end: str
    assumed: bool = False
    """Answers begin inside unless the prompt has ended the thoughts."""


_QWEN: Final = ReasoningFormat(name="qwen3", begin="<think>", end="</think>")
_MISTRAL: Final = ReasoningFormat(name="mistral", begin="[THINK]", end="[/THINK]")
_DEEPSEEK: Final = replace(_QWEN, name="deepseek_r1", assumed=True)
FORMATS: Final = {found.name: found for found in (_QWEN, _MISTRAL, _DEEPSEEK)}


class ReasoningTokenizer(Protocol):
    """What is asked of a tokenizer."""

    @property
    def chat_template(self) -> str | None: ...
    @property
    def template_variables(self) -> frozenset[str]: ...
    def token_id(self, text: str, /) -> int | None:
        """The one token that is this text."""
        ...

    def special_token_id(self, text: str, /) -> int | None: ...
    def token_text(self, token_id: int, /) -> str: ...


class ReasoningTurn(Struct, frozen=True, kw_only=True):
    """How the answers to one prompt think.

    Attributes:
        inside: answers begin with thoughts, which the prompt has begun.
        thoughts: that precede an answer's form; None: none may, or they cannot be told by tokens.
        end_id: the token that ends thoughts, if it is one.
        shown_ids: special tokens that belong to the text which is read.
    """

    spoken: ReasoningFormat
    inside: bool
    thoughts: Thoughts | None
    end_id: int | None
    shown_ids: frozenset[int]


class ReasoningDialect:
    """One model's.

    Attributes:
        refuses: capability fields that it does not honour.
    """

    def __init__(self, tokenizer: ReasoningTokenizer, parser: ReasoningParser = "auto") -> None:
        self._tokenizer = tokenizer
        self._spoken = FORMATS.get(parser)
        if parser == "auto":
            self._spoken = _spoken_by(tokenizer)
        if self._spoken is not None:
            marks = (self._spoken.begin, self._spoken.end)
            self._begin_id, self._end_id = (tokenizer.token_id(mark) for mark in marks)
            special = {tokenizer.special_token_id(mark) for mark in marks}
            self._shown_ids = frozenset(token for token in special if token is not None)
        self._told_by = tokenizer.template_variables & {_EFFORT, *_SWITCHES}
        self.refuses = frozenset() if self._told_by else frozenset({_EFFORT})

    def template_kwargs(self, effort: str | None) -> dict[str, Any]:
        """What tells the chat template how hard to think; where it can only be switched, whether.

        Raises:
            InvalidRequestError: there is no such effort, or the template cannot be told.
        """
        if effort is None:
            return {}
        if effort not in EFFORTS:
            raise InvalidRequestError(
                f"{_EFFORT} is {effort!r}; send one of {', '.join(EFFORTS)}.", param=_EFFORT
            )
        if not self._told_by:
            raise InvalidRequestError(
                f"{_EFFORT!r} is not supported by this model, whose chat template knows of none; "
                "leave it out.",
                param=_EFFORT,
            )
        return {name: effort if name == _EFFORT else effort != "none" for name in self._told_by}

    def turn(self, prompt_ids: Sequence[int]) -> ReasoningTurn | None:
        """For the answers to a chat's prompt; None: this model does not think aloud."""
        spoken = self._spoken
        if spoken is None:
            return None
        tail = "".join(map(self._tokenizer.token_text, prompt_ids[-_TAIL_TOKENS:])).rstrip()
        over = tail.endswith(spoken.end)
        inside = tail.endswith(spoken.begin) or (spoken.assumed and not over)
        thoughts = None
        if self._end_id is not None and not over:
            thoughts = Thoughts(begin_id=self._begin_id, end_id=self._end_id, inside=inside)
        return ReasoningTurn(
            spoken=spoken,
            inside=inside,
            thoughts=thoughts,
            end_id=self._end_id,
            shown_ids=self._shown_ids,
        )


def _spoken_by(tokenizer: ReasoningTokenizer) -> ReasoningFormat | None:
    """What a template mentions, else the vocabulary has tokens for."""
    template = tokenizer.chat_template or ""
    for spoken in (_QWEN, _MISTRAL):
        if spoken.begin in template or spoken.end in template:
            return spoken
    for spoken in (_QWEN, _MISTRAL):
        if None not in (tokenizer.token_id(spoken.begin), tokenizer.token_id(spoken.end)):
            return spoken
    return None


class ReasoningReader:
    """Reads one answer as it comes: thoughts, if it begins with some, then all the rest.

    Attributes:
        thought: whether it does.
    """

    def __init__(self, turn: ReasoningTurn) -> None:
        self._begin, self._end = turn.spoken.begin, turn.spoken.end
        self._end_id = turn.end_id
        self.thought = turn.inside
        self._step: Literal["start", "inside", "behind", "outside"]
        self._step = "inside" if turn.inside else "start"
        self._held = ""
        self._begun = False
        """Whether thoughts have been told: blanks before the first are left out."""
        self._counting = True
        self._count = 0
        self._kept: tuple[TokenLogprob, ...] = ()
        """Of tokens of which it is open whether they begin thoughts."""

    @property
    def tokens(self) -> int:
        """Of thoughts and what stands around them, so far."""
        return self._count if self.thought else 0

    def take(self, event: TokenEvent) -> tuple[str, TokenEvent]:
        """New thoughts, and what an event tells beside them: as if nothing had been thought."""
        if self._step == "outside" and not self._counting:
            return "", event
        thoughts, said = self.feed(event.text)
        if event.finish_reason is not None:
            more, rest = self.end()
            thoughts, said = thoughts + more, said + rest
        logprobs = event.logprobs[self._count_tokens(event.token_ids) :]
        if self._step == "outside" and not self.thought:
            logprobs, self._kept = self._kept + event.logprobs, ()
            self._counting = False
        elif not self.thought:
            self._kept += event.logprobs
        return thoughts, replace(event, text=said, logprobs=logprobs)

    def feed(self, text: str) -> tuple[str, str]:
        """(thoughts, what is said) that more of the answer's text makes certain."""
        self._held += text
        thoughts = ""
        if self._step == "start":
            self._read_start()
        if self._step == "inside":
            thoughts = self._read_inside()
        if self._step == "behind" and (rest := self._held.lstrip()):
            self._held, self._step = rest, "outside"
        if self._step != "outside":
            return thoughts, ""
        said, self._held = self._held, ""
        return thoughts, said

    def end(self) -> tuple[str, str]:
        """What was held back, at the answer's end."""
        step, held = self._step, self._held
        self._step, self._held = "outside", ""
        if step == "inside":
            return held.rstrip() if self._begun else held.strip(), ""
        return "", held if step == "start" else ""

    def _read_start(self) -> None:
        first = self._held.lstrip()
        if first.startswith(self._begin):
            self._held, self._step = first.removeprefix(self._begin), "inside"
            self.thought = True
        elif not self._begin.startswith(first):
            self._step = "outside"

    def _read_inside(self) -> str:
        text, found, rest = self._held.partition(self._end)
        kept = ""
        if found:
            self._step = "behind"
        else:
            most = min(len(self._end) - 1, len(text))
            size = next((n for n in range(most, 0, -1) if self._end.startswith(text[-n:])), 0)
            text, kept = text[: len(text) - size], text[len(text) - size :]
        told = text.rstrip()
        self._held = rest if found else text[len(told) :] + kept
        if not self._begun:
            told = told.lstrip()
            self._begun = bool(told)
        return told

    def _count_tokens(self, token_ids: Sequence[int]) -> int:
        """How many of an event's tokens may be thoughts: those up to what ends these."""
        if not self._counting:
            return 0
        count = len(token_ids)
        if self._end_id in token_ids:
            count = token_ids.index(self._end_id) + 1
            self._counting = False
        elif self._step in ("behind", "outside"):  # a model may spell it, too
            self._counting = False
        self._count += count
        return count
