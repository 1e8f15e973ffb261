"""What a request may say about tools."""

from typing import Any

import pytest

from backends.errors import InvalidRequestError
from backends.tools.asked import read_tools


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_without_tools_nothing_is_asked(choice: str | None) -> None:
    """An empty list, or a choice that asks for nothing, is as if it were left out."""
    assert read_tools([], choice, True) is None
    assert read_tools(None, choice, None) is None


@pytest.mark.parametrize(
    ("choice", "parallel", "read", "callable_", "several"),
    [
        (None, None, "auto", ["f", "g"], None),
        ("auto", False, "auto", ["f", "g"], False),
        ("none", None, "none", ["f", "g"], None),
        ("required", True, "required", ["f", "g"], True),
        (named("g"), None, "required", ["g"], False),
    ],
)
def test_choice_says_what_may_be_called(
    choice: Any, parallel: bool | None, read: str, callable_: list[str], several: bool | None
) -> None:
    """A named function is the only one, once; else all may be, as often as was said."""
    asked = read_tools([tool("f"), tool("g")], choice, parallel)
    assert asked is not None
    assert (asked.choice, [f.name for f in asked.callable]) == (read, callable_)
    assert asked.several is several
    assert not asked.strict


def test_strict_counts_only_of_what_may_be_called() -> None:
    """A function that is not to be called binds nobody."""
    tools = [tool("f", strict=True), tool("g", strict=False)]
    asked = [read_tools(tools, choice, None) for choice in ("auto", named("g"))]
    assert [one is not None and one.strict for one in asked] == [True, False]


@pytest.mark.parametrize(
    ("tools", "choice", "param", "words"),
    [
        ([{"type": "function"}], None, "tools[0]", "function"),
        ([{"type": "web_search"}], None, "tools[0].type", "'web_search'"),
        ([{"function": {"name": "f"}}], None, "tools[0].type", "None"),
        ([tool(), tool("")], None, "tools[1].function.name", "''"),
        ([tool('a"b')], None, "tools[0].function.name", "letters"),
        ([tool(7)], None, "tools[0].function.name", "str"),  # type: ignore[arg-type]
        ([tool(), tool("g"), tool()], None, "tools[2].function.name", "two functions 'f'"),
        ([tool(parameters=[])], None, "tools[0].function.parameters", "object"),
        ([tool(parameters={"type": "array"})], None, "tools[0].function.parameters", "'array'"),
        (
            [tool(parameters={"properties": []})],
            None,
            "tools[0].function.parameters.properties",
            "no object",
        ),
        ([tool(strict="yes")], None, "tools[0].function.strict", "bool"),
        ([tool()], "always", "tool_choice", "'always'"),
        ([tool()], named("g"), "tool_choice.function.name", "'g'"),
        ([tool()], {"type": "function"}, "tool_choice", "function"),
        ([tool()], {"type": "custom", "custom": {}}, "tool_choice.type", "custom"),
        ([], "required", "tool_choice", "needs 'tools'"),
        (None, named("g"), "tool_choice", "needs 'tools'"),
    ],
)
def test_nonsense_is_refused_by_its_field(tools: Any, choice: Any, param: str, words: str) -> None:
    """The error names the place and says what is wrong there."""
    with pytest.raises(InvalidRequestError) as refusal:
        read_tools(tools, choice, None)
    assert refusal.value.param == param
    assert words in refusal.value.message
