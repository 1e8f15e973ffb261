"""Our engine's answers with tools, by a model that says what a test wants it to say."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import jsonschema
import pytest

from backends.errors import InvalidRequestError
from tests.backends.scripted_model import Rig
from tests.backends.tools import families

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time"}},
]
STRICT = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]  # type: ignore[dict-item]
WRONG = {"properties": {"a": {"type": "x"}}}
ROME = '{"city": "Rome", "unit": "c"}'


MakeRig = Callable[[str], Rig]


@pytest.fixture
async def rig() -> AsyncIterator[MakeRig]:
    rigs: list[Rig] = []

    def make(template: str) -> Rig:
        rigs.append(Rig(families.tokenizer(template), tools=TOOLS))
        return rigs[-1]

    yield make
    for one in rigs:
        await one.backend.aclose()


WRITTEN = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>',
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {ROME}}}]',
    "qwen3_coder": (
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
        "<parameter=unit>\nc\n</parameter>\n</function>\n</tool_call>"
    ),
    "mistral_v11": f"[TOOL_CALLS]weather[ARGS]{ROME}",
    "granite": f'<|tool_call|> [{{"name": "weather", "arguments": {ROME}}}]',
    "phi4_mini_json": f'functools[{{"name": "weather", "arguments": {ROME}}}]',
    "pythonic": '[weather(city="Rome", unit="c")]',
    "llama3_json": f'<|python_tag|>{{"name": "weather", "parameters": {ROME}}}',
}


@pytest.mark.parametrize("family", WRITTEN)
async def test_calls_of_every_family_are_read(rig: MakeRig, family: str) -> None:
    """The message of a call has no content, ids as the family's template takes them, and its
    finish_reason; special tokens that mark calls are seen."""
    choice = await rig(families.TEMPLATES[family]).ask(WRITTEN[family])
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": ROME})
    assert len(call["id"]) == 9 if "mistral" in family else call["id"].startswith("call_")
    assert choice["finish_reason"] == "tool_calls"


async def test_model_left_to_choose_may_answer(rig: MakeRig) -> None:
    """Its text is content, what comes before calls too, and so is a call that is malformed."""
    hermes = rig(families.HERMES)
    plain = await hermes.ask("Hello <you>!")
    assert plain["message"] == {"role": "assistant", "content": "Hello <you>!", "refusal": None}
    assert plain["finish_reason"] == "stop"
    both = await hermes.ask("One moment. " + WRITTEN["hermes"] + "\n" + WRITTEN["hermes"])
    assert both["message"]["content"] == "One moment. "
    assert len(both["message"]["tool_calls"]) == 2
    broken = await hermes.ask("<tool_call>\n{weather}")
    assert broken["message"]["content"] == "<tool_call>\n{weather}"
    assert broken["finish_reason"] == "stop"


async def test_none_is_text_whatever_the_model_writes(rig: MakeRig) -> None:
    """And a special token that marks calls is no text."""
    hermes, mistral = rig(families.HERMES), rig(families.MISTRAL)
    choice = await hermes.ask(WRITTEN["hermes"], tool_choice="none")
    assert choice["message"]["content"] == WRITTEN["hermes"]
    choice = await mistral.ask(WRITTEN["mistral"], tool_choice="none")
    assert choice["message"]["content"] == WRITTEN["mistral"].removeprefix("[TOOL_CALLS]")


@pytest.mark.parametrize(  # Between tags text goes on until a model ends it.
    "template",
    [
        families.HERMES,
        families.MISTRAL,
        families.MISTRAL_V11,
        families.PYTHONIC,
        families.LLAMA,
        families.PLAIN,
        families.XML,
    ],
)
async def test_call_results_where_it_must(rig: MakeRig, template: str) -> None:
    """Whatever the model would say, whether or not its template knows tools."""
    made = rig(template)
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, tools in ((named, TOOLS), ("required", STRICT)):
        answer = await made.ask("I would rather not.", tool_choice=choice, tools=tools)
        assert answer["finish_reason"] == "tool_calls"
        for call in answer["message"]["tool_calls"]:
            assert call["function"]["name"] == "weather"
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)


@pytest.mark.parametrize("family", WRITTEN)
async def test_strict_arguments_keep_to_their_schema(rig: MakeRig, family: str) -> None:
    """The text before is free; behind the marker there is nothing but a valid call."""
    made = rig(families.TEMPLATES[family])
    wrong = WRITTEN[family].replace('"c"', '"kelvin"').replace("\nc\n", "\nkelvin\n")
    loose = await made.ask(wrong)
    arguments = json.loads(loose["message"]["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"city": "Rome", "unit": "kelvin"}
    strict = await made.ask(wrong, tools=STRICT)
    arguments = json.loads(strict["message"]["tool_calls"][0]["function"]["arguments"])
    jsonschema.validate(arguments, SCHEMA)
    assert (await made.ask("Hello.", tools=STRICT))["message"]["content"] == "Hello."


async def test_only_one_call_where_one_is_wanted(rig: MakeRig) -> None:
    """By the reader where the model is free, by the form where it is not."""
    hermes = rig(families.HERMES)
    for fields in ({}, {"tool_choice": "required"}, {"tools": STRICT}):
        two = await hermes.ask(
            WRITTEN["hermes"] + "\n" + WRITTEN["hermes"], parallel_tool_calls=False, **fields
        )
        assert len(two["message"]["tool_calls"]) == 1


async def test_cut_call_keeps_its_arguments(rig: MakeRig) -> None:
    """finish_reason is `length`, and the arguments end where they were cut."""
    made = rig(families.HERMES)
    size = len(made.model.tokenizer.encode('<tool_call>\n{"name": "weather", "arguments": {"city'))
    choice = await made.ask(WRITTEN["hermes"], max_tokens=size)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city'


async def test_every_choice_has_calls_of_its_own(rig: MakeRig) -> None:
    """Of n answers each is read by itself."""
    made = rig(families.HERMES)
    made.model.says(WRITTEN["hermes"])
    whole = await made.backend.generate(made.request({"n": 2}))
    calls = [choice["message"]["tool_calls"][0] for choice in whole.body["choices"]]
    assert len({call["id"] for call in calls}) == 2
    chunks = [chunk.body async for chunk in made.backend.stream(made.request({"n": 2}))]
    heads = [
        (choice["index"], call["index"])
        for chunk in chunks
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", [])
        if "id" in call
    ]
    assert sorted(heads) == [(0, 0), (1, 0)]


async def test_results_go_back_to_the_model(rig: MakeRig) -> None:
    """The next turn holds the call and its result, with `tools` or without."""
    made = rig(families.HERMES)
    call = (await made.ask(WRITTEN["hermes"]))["message"]
    talk = [
        {"role": "user", "content": "hello"},
        call,
        {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "sunny"},
    ]
    for tools in (TOOLS, None):
        answer = await made.ask("It is sunny.", messages=talk, tools=tools)
        assert answer["message"]["content"] == "It is sunny."


@pytest.mark.parametrize(
    ("template", "fields", "param"),
    [
        (families.PLAIN, {}, "tools"),
        (families.HERMES, {"tool_choice": "all"}, "tool_choice"),
        (families.HERMES, {"tools": [], "tool_choice": "required"}, "tool_choice"),
        (families.HERMES, {"functions": [{"name": "f"}]}, "functions"),
        (families.PLAIN, {"tools": None, "functions": [{"name": "f"}]}, "functions"),
        (families.HERMES, {"tools": None, "function_call": {"name": "f"}}, "function_call"),
        (families.HERMES, {"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        (families.HERMES, {"tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "f", "parameters": WRONG}}]},
         "tools"),
    ],
)  # fmt: skip
async def test_what_cannot_be_kept_is_refused(
    rig: MakeRig, template: str, fields: dict[str, Any], param: str
) -> None:
    """With the field's name, before anything is generated."""
    made = rig(template)
    with pytest.raises(InvalidRequestError) as refusal:
        await made.backend.generate(made.request(fields))
    assert refusal.value.param == param


async def test_refusal_of_a_schema_names_its_function(rig: MakeRig) -> None:
    """Of many functions one is to blame."""
    odd = {"name": "odd", "strict": True, "parameters": {"properties": {"a": {"not": {}}}}}
    tools = [*STRICT, {"type": "function", "function": odd}]
    made = rig(families.HERMES)
    with pytest.raises(InvalidRequestError, match="function 'odd': The JSON Schema cannot"):
        await made.backend.generate(made.request({"tools": tools}))


async def test_stream_that_is_left_ends_the_request(rig: MakeRig) -> None:
    """In the middle of a call, as anywhere."""
    made = rig(families.HERMES)
    made.model.says(WRITTEN["hermes"])
    stream = made.backend.stream(made.request({"tools": STRICT}))
    async for chunk in stream:
        if chunk.body["choices"][0]["delta"].get("tool_calls"):
            break
    await stream.aclose()
    usage = await made.backend.usage_of("r")
    assert usage is not None
    assert usage.completion_tokens > 0
    assert (await made.backend.probe()).running == 0


@pytest.mark.parametrize("family", WRITTEN)
async def test_only_allowed_tools_are_called(rig: MakeRig, family: str) -> None:
    """Where a model is left to choose and where it is not; it may still say something else."""
    made = rig(families.TEMPLATES[family])
    for mode in ("auto", "required"):
        tools = [{"type": "function", "function": {"name": "time"}}]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        answer = await made.ask(WRITTEN[family], tool_choice=choice)
        for call in answer["message"]["tool_calls"]:
            assert call["function"] == {"name": "time", "arguments": "{}"}
    choice["allowed_tools"]["mode"] = "auto"  # type: ignore[index]
    answer = await made.ask("Hello.", tool_choice=choice)
    assert answer["message"]["content"] == "Hello."


@pytest.mark.parametrize("wanted", [None, {"name": "weather"}])
async def test_functions_are_answered_by_a_function_call(rig: MakeRig, wanted: Any) -> None:
    """As before there were tools: one, without an id."""
    made = rig(families.HERMES)
    fields = {"tools": None, "functions": [tool["function"] for tool in TOOLS]}
    if wanted:
        fields["function_call"] = wanted
    made.model.says("Hm. " + WRITTEN["hermes"] + WRITTEN["hermes"])
    whole = await made.backend.generate(made.request(fields))
    (choice,) = whole.body["choices"]
    call = choice["message"]["function_call"]
    assert call["name"] == "weather"
    assert wanted or call["arguments"] == ROME
    assert choice["finish_reason"] == "function_call"
    assert "tool_calls" not in choice["message"]
    chunks = [chunk.body async for chunk in made.backend.stream(made.request(fields))]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert parts[0]["name"] == "weather"
    assert all("name" not in part for part in parts[1:])
    assert "".join(part["arguments"] for part in parts) == call["arguments"]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "function_call"
    text = await made.ask("Hello.", **fields) if not wanted else None
    assert text is None or text["message"]["content"] == "Hello."


@pytest.mark.parametrize(("family", "wanted"), [("hermes", 1), ("mistral", 1), ("hermes", 32)])
async def test_answer_ends_where_no_more_calls_are_told(
    rig: MakeRig, family: str, wanted: int
) -> None:
    """A model that repeats itself until its tokens are out is not waited for, nor paid."""
    made = rig(families.TEMPLATES[family])
    one = '{"name": "time"}'
    written = {
        "hermes": f"<tool_call>{one}</tool_call>" * 40,
        "mistral": f"[TOOL_CALLS][{', '.join([one] * 40)}]",
    }
    fields = {} if wanted > 1 else {"parallel_tool_calls": False}
    answer = await made.ask(written[family], max_tokens=1600, **fields)
    assert len(answer["message"]["tool_calls"]) == wanted
    assert answer["finish_reason"] == "tool_calls"
    told = len(made.model.tokenizer.encode(written[family])) * (wanted + 1) // 40
    assert made.usage["completion_tokens"] < told
    assert (await made.backend.probe()).running == 0
