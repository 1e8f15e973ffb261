"""The tools of a request, checked: what may be called, and whether it must be."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct

from backends.errors import InvalidRequestError

Choice = Literal["none", "auto", "required"]

_NAME: Final = re.compile(r"[\w./:-]{1,128}")
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`$")


class Function(Struct, frozen=True):
    """One function, as OpenAI describes it; what else clients say of it goes to the template."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of its arguments; None: it takes none."""
    strict: bool | None = None
    """True: arguments keep to `parameters` wherever it is called, or the request is refused."""


class _Tool(Struct):
    type: Literal["function"]
    function: Function


class _Named(Struct, forbid_unknown_fields=True):
    name: str


class _ToolChoice(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: _Named


class AskedTools(Struct, frozen=True, kw_only=True):
    """What a request says about tools.

    Attributes:
        tools: as they came.
        callable: the functions that the answer may call.
        choice: `required`: the answer is nothing but calls.
        several: whether it may make more than one call; None: if the model knows when to stop.
    """

    tools: Sequence[Mapping[str, Any]]
    callable: tuple[Function, ...]
    choice: Choice
    several: bool | None

    @property
    def strict(self) -> bool:
        """Whether some function wants its arguments kept to its schema."""
        return any(function.strict for function in self.callable)


def read_tools(
    tools: Sequence[Mapping[str, Any]] | None,
    choice: str | Mapping[str, Any] | None,
    parallel: bool | None,
) -> AskedTools | None:
    """Check `tools`, `tool_choice` and `parallel_tool_calls`; None: nothing is asked of tools.

    Raises:
        InvalidRequestError: naming the field and what is wrong with it.
    """
    functions = tuple(_function(place, tool) for place, tool in enumerate(tools or ()))
    names = [function.name for function in functions]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise _refusal(f"there are two functions {name!r}", f"tools[{place}].function.name")
    if not functions:
        if choice in (None, "none", "auto"):
            return None
        raise InvalidRequestError(
            "'tool_choice' needs 'tools' to choose from.", param="tool_choice"
        )
    if choice is None or isinstance(choice, str):
        word: Any = choice or "auto"
        if word not in get_args(Choice):
            raise _refusal(
                f"tool_choice is {word!r}; allowed: 'none', 'auto', 'required' or "
                '{"type": "function", "function": {"name": …}}',
                "tool_choice",
            )
        return AskedTools(tools=tools or (), callable=functions, choice=word, several=parallel)
    named = _convert(choice, _ToolChoice, "tool_choice").function.name
    chosen = tuple(function for function in functions if function.name == named)
    if not chosen:
        raise _refusal(
            f"tool_choice names {named!r}, which 'tools' does not have; it has "
            f"{', '.join(map(repr, names))}",
            "tool_choice.function.name",
        )
    return AskedTools(tools=tools or (), callable=chosen, choice="required", several=False)


def _function(place: int, tool: Mapping[str, Any]) -> Function:
    kind = tool.get("type")
    if kind != "function":
        raise _refusal(
            f"a tool's type is {kind!r}; this model has 'function' only", f"tools[{place}].type"
        )
    function: Function = _convert(tool, _Tool, f"tools[{place}]").function
    if not _NAME.fullmatch(function.name):
        raise _refusal(
            f"a function is called {function.name!r}; allowed: 1 to 128 letters, digits or _-./:",
            f"tools[{place}].function.name",
        )
    schema = function.parameters
    if schema and schema.get("type", "object") != "object":
        raise _refusal(
            f"parameters of {function.name!r} are of type {schema['type']!r}; allowed: 'object'",
            f"tools[{place}].function.parameters",
        )
    if schema and not isinstance(schema.get("properties", {}), Mapping):
        raise _refusal(
            f"properties of {function.name!r} are no object",
            f"tools[{place}].function.parameters.properties",
        )
    return function


def _convert(value: Any, kind: Any, within: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        path = ".".join(part for part in (within, found.group(1) if found else "") if part)
        raise _refusal(_PATH.sub("", str(error)), path) from None


def _refusal(problem: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for {param}: {problem}.", param=param)
