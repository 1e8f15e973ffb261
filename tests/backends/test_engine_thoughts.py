"""Our engine's answers of models that think aloud."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import jsonschema
import pytest

from backends.chat_template import ChatTemplate
from backends.errors import InvalidRequestError
from backends.tokenizer import Tokenizer
from tests.backends import tiny_tokenizers
from tests.backends.scripted_model import Rig
from tests.backends.test_reasoning import DEEPSEEK, MAGISTRAL, QWEN, tokenizer
from tests.backends.tools.families import HERMES

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'

MakeRig = Callable[..., Rig]


@pytest.fixture
async def rig() -> AsyncIterator[MakeRig]:
    rigs: list[Rig] = []

    def make(template: str, **how: Any) -> Rig:
        rigs.append(Rig(tokenizer(template, **how)))
        return rigs[-1]

    yield make
    for one in rigs:
        await one.backend.aclose()


@pytest.mark.parametrize(
    ("template", "how", "says"),
    [
        (QWEN, {}, "<think>\nSo, {hm}.\n</think>\n\nYes."),
        (QWEN, {"special": True}, "<think>\nSo, {hm}.\n</think>\n\nYes."),
        (QWEN, {"tokens": False}, "<think>\nSo, {hm}.\n</think>\n\nYes."),
        (DEEPSEEK, {}, "So, {hm}.\n</think>\n\nYes."),
        (MAGISTRAL, {"special": True, "mistral": True}, "[THINK]So, {hm}.[/THINK]Yes."),
    ],
)
async def test_thoughts_are_told_apart(
    rig: MakeRig, template: str, how: dict[str, Any], says: str
) -> None:
    """Under both names that clients read, and counted; the content is what is said."""
    made = rig(template, **how)
    choice = await made.ask(says)
    message = {"reasoning_content": "So, {hm}.", "reasoning": "So, {hm}.", "content": "Yes."}
    assert choice["message"] == {"role": "assistant", **message, "refusal": None}
    assert choice["finish_reason"] == "stop"
    ids = made.model.tokenizer.encode(says)
    details = made.usage["completion_tokens_details"]
    assert made.usage["completion_tokens"] == len(ids) + 1
    assert 0 < details["reasoning_tokens"] <= len(ids) - len(made.model.tokenizer.encode("Yes."))


async def test_thoughts_that_are_cut_off_leave_no_content(rig: MakeRig) -> None:
    """All tokens went into them."""
    made = rig(QWEN)
    choice = await made.ask("<think>So and so and so on", max_tokens=9)
    assert choice["message"]["content"] == ""
    assert "<think>So and so and so on".startswith("<think>" + choice["message"]["reasoning"])
    assert choice["finish_reason"] == "length"
    assert made.usage["completion_tokens_details"]["reasoning_tokens"] == 9


async def test_models_that_do_not_think_answer_as_ever(rig: MakeRig) -> None:
    """No new field, nothing counted."""
    made = rig(QWEN)
    choice = await made.ask("Yes <think>.", logprobs=False)
    assert choice["message"] == {"role": "assistant", "content": "Yes <think>.", "refusal": None}
    assert made.usage["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    ("template", "begin"), [(QWEN, "<think>\n"), (DEEPSEEK, ""), (QWEN, ""), (DEEPSEEK, "</think>")]
)
async def test_form_begins_behind_the_thoughts(rig: MakeRig, template: str, begin: str) -> None:
    """Which are free; without any, the form holds from the first token on."""
    made = rig(template)
    thinks = begin != "" or template == DEEPSEEK
    says = begin + ("I think [1] it is {}.</think>" if thinks and "/" not in begin else "")
    choice = await made.ask(says + "\n\nCertainly: 7", response_format=FORM)
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    thoughts = choice["message"].get("reasoning_content")
    assert thoughts == ("I think [1] it is {}." if says.endswith("{}.</think>") else None)


async def test_answer_may_not_end_before_its_form(rig: MakeRig) -> None:
    """Thoughts go on until they are ended."""
    made = rig(DEEPSEEK)
    choice = await made.ask("Hm", response_format=FORM, max_tokens=20)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""


async def test_thinking_is_switched_off_by_the_template(rig: MakeRig) -> None:
    """`chat_template_kwargs` go there; then the form holds from the beginning."""
    made = rig(QWEN)
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    choice = await made.ask("<think>Hm</think>", response_format=FORM, **off)
    assert choice["message"].keys() == {"role", "content", "refusal"}
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    body = made.request(off).body
    assert (await made.backend.count_tokens(body) or 0) > (
        await made.backend.count_tokens(made.request({}).body) or 0
    )
    with pytest.raises(InvalidRequestError) as refusal:
        await made.backend.generate(made.request({"chat_template_kwargs": {"tools": []}}))
    assert refusal.value.param == "chat_template_kwargs.tools"


async def test_effort_none_switches_thinking_off(rig: MakeRig) -> None:
    """As the template's own word for it does, which counts where both are sent."""
    made = rig(QWEN)
    assert "reasoning_effort" in ((await made.backend.probe()).accepts or ())
    plain = await made.backend.count_tokens(made.request({}).body)

    async def counted(**fields: Any) -> int | None:
        return await made.backend.count_tokens(made.request(fields).body)

    off = await counted(chat_template_kwargs={"enable_thinking": False})
    assert off != plain
    assert await counted(reasoning_effort="none") == off
    assert await counted(reasoning_effort="high") == plain
    on = {"enable_thinking": True}
    assert await counted(reasoning_effort="none", chat_template_kwargs=on) == plain
    choice = await made.ask("<think>Hm</think>", response_format=FORM, reasoning_effort="none")
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


async def test_thoughts_are_left_out_where_nobody_wants_them(rig: MakeRig) -> None:
    """Whole and streamed; they are counted all the same."""
    made = rig(QWEN)
    choice = await made.ask("<think>So.</think>Yes.", include_reasoning=False)
    assert choice["message"] == {"role": "assistant", "content": "Yes.", "refusal": None}
    assert made.usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert (await made.ask("<think>So.</think>Yes.", include_reasoning=True))["message"][
        "reasoning"
    ] == "So."


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_calls_come_behind_the_thoughts(choice: str) -> None:
    """What a model only thinks of calling is not called, and one made to call may think first."""
    rust = tiny_tokenizers.byte_level()
    rust.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    template = ChatTemplate(HERMES, tokens={"bos_token": "<|bos|>"})
    made = Rig(Tokenizer(rust, eos_token_ids=[1, 5], chat_template=template), tools=TOOLS)
    other = CALL.replace('"n": 1', '"n": 2')
    answer = await made.ask(f"<think>Not {other}</think>{CALL}", tool_choice=choice)
    message = answer["message"]
    assert message["reasoning_content"] == f"Not {other}"
    assert message["content"] is None
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == ['{"n": 1}']
    assert answer["finish_reason"] == "tool_calls"
    await made.backend.aclose()


async def test_thoughts_go_back_to_the_template_by_the_name_it_knows(rig: MakeRig) -> None:
    """Whichever of the two names a client sends back."""
    made = rig(QWEN.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}"))
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    with_thoughts = [talk[0], {**talk[1], "reasoning": "a b c"}, talk[0]]
    both = [talk[0], {**talk[1], "reasoning": "a b c", "reasoning_content": "a b c"}, talk[0]]
    ids = await made.backend.encode_chat(with_thoughts)
    assert ids == await made.backend.encode_chat(both)
    assert "a b c2" in "".join(map(made.model.tokenizer.token_text, ids))


async def test_every_choice_has_thoughts_of_its_own(rig: MakeRig) -> None:
    """And its tokens are counted."""
    made = rig(QWEN)
    says = "<think>Hm</think>Yes."
    made.model.says(says)
    whole = await made.backend.generate(made.request({"n": 2}))
    told = [choice["message"] for choice in whole.body["choices"]]
    assert [(m["reasoning_content"], m["content"]) for m in told] == [("Hm", "Yes.")] * 2
    thought = 2 * len(made.model.tokenizer.encode("<think>Hm</think>"))
    assert whole.body["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought
