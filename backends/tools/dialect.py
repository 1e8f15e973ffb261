"""How one model is told of tools, and how it calls them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from backends.contract import StructuredOutputsParams
from backends.errors import InvalidRequestError
from backends.tools.answer import AnswerCalls
from backends.tools.asked import AskedTools, Function
from backends.tools.formats import FORMATS, HERMES, MARKS, ToolCallParser, ToolFormat, format_of
from backends.tools.grammar import calls_form
from backends.tools.messages import described, spelled_out, with_names, with_short_ids


class ToolTokenizer(Protocol):
    """What is asked of a tokenizer."""

    @property
    def chat_template(self) -> str | None:
        """Source of the template that is used where tools are given."""
        ...

    @property
    def template_variables(self) -> frozenset[str]: ...
    def special_token_id(self, text: str, /) -> int | None: ...


class ToolTurn(Struct, frozen=True, kw_only=True):
    """What tools come to in one request.

    Attributes:
        tools: for the chat template; None: it is told of none.
        form: that the answer must have.
        constrains: whether it is tools that ask for that form.
        functions: that the answer may call.
        spoken: how calls stand in the answer; None: there are none in it.
        several: whether calls after the first count.
        legacy: whether they are told as before there were tools.
        shown_ids: special tokens that belong to the answer's text.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    form: StructuredOutputsParams | None = None
    constrains: bool = False
    functions: tuple[Function, ...] = ()
    spoken: ToolFormat | None = None
    several: bool = True
    legacy: bool = False
    shown_ids: frozenset[int] = frozenset()

    def reads(self, num_choices: int) -> AnswerCalls | None:
        """For the request's answers; None: as they come."""
        if self.spoken is None:
            return None
        return AnswerCalls(
            self.spoken,
            self.functions,
            several=self.several,
            num_choices=num_choices,
            legacy=self.legacy,
        )


NO_TOOLS: Final = ToolTurn()


class Dialect:
    """One model's.

    Attributes:
        refuses: capability fields that it does not honour. A model that refuses `tools` can be
            made to call (`tool_choice`), but does not know when to.
    """

    def __init__(self, tokenizer: ToolTokenizer, parser: ToolCallParser = "auto") -> None:
        self._native = "tools" in tokenizer.template_variables
        template = (tokenizer.chat_template or "") if self._native else ""
        known = format_of(template, parser)
        self._knows = known is not None
        self._spoken = known or HERMES
        marks = {mark: tokenizer.special_token_id(mark) for mark in (self._spoken.marker, *MARKS)}
        self._special_ids = {mark: token for mark, token in marks.items() if token is not None}
        self.refuses = frozenset[str]() if self._knows else frozenset({"tools", "functions"})

    def turn(self, asked: AskedTools, form: StructuredOutputsParams | None) -> ToolTurn:
        """What a request with tools comes to; `form` is what else it asks of its answer.

        Raises:
            InvalidRequestError: this model cannot do that.
        """
        if asked.choice == "none":
            return ToolTurn(tools=asked.tools if self._native else None, form=form)
        if asked.choice == "auto" and not self._knows:
            why = "writes calls in no way known here" if self._native else "knows nothing of tools"
            raise InvalidRequestError(
                f"The chat template of this model {why}: it can be made to call (tool_choice "
                "'required', or one function's name), but not left to choose. If it knows how to "
                f"call, serve it with tool_call_parser: {', '.join(sorted(FORMATS))}.",
                param="functions" if asked.legacy else "tools",
            )
        if asked.several is None:  # a model that is made to call would go on and on
            asked = replace(asked, several=self._knows)
        must = asked.choice == "required" or asked.narrowed or asked.strict
        constrains = must or form is not None
        if constrains:
            form = calls_form(asked, self._spoken, self._special_ids, form)
        return ToolTurn(
            tools=asked.tools,
            form=form,
            constrains=constrains,
            functions=asked.callable,
            spoken=self._spoken,
            several=asked.several is not False,
            legacy=asked.legacy,
            shown_ids=frozenset(self._special_ids.values()),
        )

    def told(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Sequence[dict[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """Messages and tools as this model's template takes them."""
        called = any("tool_calls" in m or "tool_call_id" in m for m in messages)
        if not tools and not called:
            return messages, None
        tools = [described(tool) for tool in tools or ()] or None
        if not self._native:
            return spelled_out(messages, tools, self._spoken), None
        messages = with_names(messages)
        return with_short_ids(messages) if self._spoken.short_ids else messages, tools
