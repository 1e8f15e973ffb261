"""The main job as a stranger sees it: the OpenAI SDK, `model="auto"`, nothing configured."""

import csv
import io
import json
import time
from decimal import Decimal
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.serving import Headgate, wait_for

HEADERS = ("request-id", "backend", "model", "policy", "rule", "task", "difficulty", "cache")


def test_answer_says_who_answered_and_why(headgate: Headgate) -> None:
    """A chat through `auto` is real text with every header of the contract."""
    raw = headgate.sdk().chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "What is 2 + 3?"}], max_tokens=32
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    for name in HEADERS:
        assert raw.headers[f"x-headgate-{name}"], name
    assert raw.headers["x-request-id"] == raw.headers["x-headgate-request-id"]
    assert raw.headers["x-headgate-backend"] in ("nano", "small", "base")
    assert raw.headers["x-headgate-policy"].startswith("default@")
    assert Decimal(raw.headers["x-headgate-cost-usd"]) > 0
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer.usage.model_extra is not None
    assert answer.usage.model_extra["headgate"]["decode_ns"] > 0


def test_repeat_comes_from_the_exact_cache(headgate: Headgate) -> None:
    """The same question again costs nothing and says what it saved."""
    ask = {"model": "auto", "messages": [{"role": "user", "content": "Is a dog an animal?"}]}
    first = headgate.sdk().chat.completions.with_raw_response.create(**ask)  # type: ignore[call-overload]
    assert first.headers["x-headgate-cache"] == "miss"
    wait_for(lambda: _cache_of(headgate, ask) == "exact", what="an exact hit")
    again = headgate.sdk().chat.completions.with_raw_response.create(**ask)  # type: ignore[call-overload]
    assert again.parse().choices[0].message.content == first.parse().choices[0].message.content
    assert Decimal(again.headers["x-headgate-cost-usd"]) == 0
    assert Decimal(again.headers["x-headgate-saved-usd"]) > 0
    assert again.headers["x-headgate-request-id"] != first.headers["x-headgate-request-id"]


def test_other_words_come_from_the_semantic_cache(headgate: Headgate) -> None:
    """A paraphrase is answered by meaning, with its similarity; another country is not."""

    def ask(text: str) -> tuple[str, str | None, str]:
        raw = headgate.sdk().chat.completions.with_raw_response.create(
            model="small", messages=[{"role": "user", "content": text}], max_tokens=24
        )
        content = raw.parse().choices[0].message.content or ""
        return raw.headers["x-headgate-cache"], raw.headers.get("x-headgate-similarity"), content

    original = ask("What is the capital city of France?")
    wait_for(lambda: ask("What is the capital city of France?")[0] == "exact", what="the entry")
    wordings = (  # each is asked once: a miss (a late encoder) stores it, and a repeat is exact
        "what's the capital city of France",
        "What is the capital city of France, please?",
        "What is France's capital city?",
        "Tell me what the capital city of France is",
    )
    hits = [answer for answer in map(ask, wordings) if answer[0] == "semantic"]
    assert hits
    for _, similarity, content in hits:
        assert content == original[2]
        assert similarity is not None
        assert 0.93 <= float(similarity) <= 1.0
    assert ask("What is the capital city of Spain?")[0] == "miss"


def test_caller_can_tighten_the_cache(headgate: Headgate) -> None:
    """x-headgate-cache: off bypasses an entry, refresh replaces it; nonsense is refused."""
    ask = {"model": "nano", "messages": [{"role": "user", "content": "Say hello to me."}]}
    wait_for(lambda: _cache_of(headgate, ask) == "exact", what="an exact hit")
    assert _cache_of(headgate, ask, cache="off") == "off"
    assert _cache_of(headgate, ask, cache="refresh") == "miss"
    with pytest.raises(openai.BadRequestError, match="x-headgate-cache"):
        _cache_of(headgate, ask, cache="maybe")


def test_stream_carries_text_usage_and_route(headgate: Headgate) -> None:
    """A stream's pieces make the answer; usage and route stand on its usage chunk."""
    stream = headgate.sdk().chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": "Count from 1 to 5."}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-headgate-cache": "off"},
        max_tokens=32,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text
    last = chunks[-1]
    assert not last.choices
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert last.model_extra is not None
    assert last.model_extra["headgate"]["backend"] == "small"
    assert [c for c in chunks[:-1] if (c.model_extra or {}).get("headgate")] == []
    assert sum(c.choices[0].finish_reason is not None for c in chunks if c.choices) == 1


def test_sampling_fields_reach_the_engine(headgate: Headgate) -> None:
    """Seeds repeat, stop strings end, logprobs and n come back, max_tokens bounds."""
    chat = headgate.sdk(default_headers={"x-headgate-cache": "off"}).chat.completions
    story = [{"role": "user", "content": "Tell me a short story about a cat."}]

    def draw(seed: int) -> str:
        done = chat.create(  # type: ignore[call-overload]
            model="small", messages=story, seed=seed, temperature=1.0, max_tokens=24
        )
        return str(done.choices[0].message.content)

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1
    stopped = chat.create(model="small", messages=story, stop=[" "], temperature=0, max_tokens=50)  # type: ignore[call-overload]
    assert stopped.choices[0].finish_reason == "stop"
    assert " " not in stopped.choices[0].message.content
    many = chat.create(
        model="small", messages=story, n=3, max_tokens=4, logprobs=True, top_logprobs=2
    )  # type: ignore[call-overload]
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    for choice in many.choices:
        assert choice.finish_reason == "length"
        assert len(choice.logprobs.content) == 4
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


class Person(BaseModel):
    """What the SDK makes a strict schema of."""

    name: str
    age: int
    city: str


def test_answers_have_the_form_that_the_sdk_asks_for(headgate: Headgate) -> None:
    """Pydantic classes through chats, streams and responses; vLLM's choice; bad schemas."""
    sdk = headgate.sdk(default_headers={"x-headgate-cache": "exact"})
    text = "Extract name, age and city as JSON. Text: Anna is 34 years old and lives in Berlin."
    messages: list[Any] = [{"role": "user", "content": text}]
    asked: dict[str, Any] = {"model": "small", "messages": messages, "temperature": 0}
    parsed = sdk.chat.completions.parse(**asked, response_format=Person).choices[0].message.parsed
    assert parsed is not None
    assert parsed.age == 34
    with sdk.chat.completions.stream(**asked, response_format=Person) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    said = sdk.responses.parse(model="small", input=text, text_format=Person, temperature=0)
    assert said.output_parsed == parsed
    any_json = sdk.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert isinstance(json.loads(any_json.choices[0].message.content or ""), dict)
    choice = {"structured_outputs": {"choice": ["indigo", "ochre"]}}
    picked = sdk.chat.completions.create(**asked, extra_body=choice)
    assert picked.choices[0].message.content in ("indigo", "ochre")
    unknown = {"structured_outputs": {"json": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError, match="objekt"):
        sdk.chat.completions.create(**asked, extra_body=unknown)


def test_completions_and_embeddings_and_models(headgate: Headgate) -> None:
    """The other OpenAI endpoints answer through the SDK."""
    sdk = headgate.sdk()
    done = sdk.completions.create(model="small", prompt="Once upon a time", max_tokens=12)
    assert done.choices[0].text
    near = sdk.embeddings.create(
        model="minilm", input=["a small cat", "a little kitten", "tax law"]
    )
    a, b, c = (item.embedding for item in near.data)
    assert len(a) == 384
    assert _dot(a, b) > _dot(a, c)
    names = [model.id for model in sdk.models.list()]
    assert {"auto", "nano", "small", "base", "minilm"} <= set(names)
    assert sdk.models.retrieve("small").id == "small"


def test_responses_files_and_batches_work_through_the_sdk(headgate: Headgate) -> None:
    """The SDK's typed helpers understand what comes: events in order, pages, a batch's life."""
    sdk = headgate.sdk()
    asked: dict[str, Any] = {"model": "small", "input": "Name a colour.", "temperature": 0}
    whole = sdk.responses.create(**asked, instructions="Be brief.", max_output_tokens=16)
    assert whole.output_text
    with sdk.responses.stream(**asked, max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert final.output_text
    assert final.usage is not None
    assert final.model_extra is not None
    assert final.model_extra["headgate"]["backend"] == "small"

    chat = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    endpoint: Literal["/v1/chat/completions"] = "/v1/chat/completions"
    line = {"custom_id": "one", "method": "POST", "url": endpoint, "body": chat}
    file = sdk.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    ends = time.monotonic() + 120
    while (batch := sdk.batches.retrieve(batch.id)).status != "completed":
        assert time.monotonic() < ends, batch
        time.sleep(0.1)
    assert batch.output_file_id is not None
    (answer,) = map(json.loads, sdk.files.content(batch.output_file_id).text.splitlines())
    assert answer["custom_id"] == "one"
    assert answer["response"]["body"]["choices"][0]["message"]["content"]
    assert batch.id in [one.id for one in sdk.batches.list()]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "gpt-99"}, openai.NotFoundError, "gpt-99"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"extra_body": {"no_such_field": 1}}, openai.BadRequestError, "no_such_field"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "tools",
        ),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context"),
    ],
)
def test_bad_requests_name_the_field(
    headgate: Headgate, fields: dict[str, object], error: type[openai.APIStatusError], words: str
) -> None:
    """Each refusal is the SDK's own error class and names what is wrong."""
    ask = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], **fields}
    with pytest.raises(error) as caught:
        headgate.sdk().chat.completions.create(**ask)  # type: ignore[call-overload]
    assert words in str(caught.value)
    assert headgate.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"model": "auto", "messages": [{"role": "user", "content": "\xff\xfe"}]}', b"[]", b""],
)
def test_bytes_that_are_no_request_are_refused(headgate: Headgate, body: bytes) -> None:
    """Malformed JSON and broken UTF-8 get OpenAI's error shape with 400."""
    import httpx

    url = f"{headgate.url}/v1/chat/completions"
    response = httpx.post(url, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_megabyte_prompt_is_refused_quickly(headgate: Headgate) -> None:
    """A prompt that can never fit is a 400 context_length_exceeded, and the server goes on."""
    ask = [{"role": "user", "content": "word " * 200_000}]
    with pytest.raises(openai.BadRequestError) as caught:
        headgate.sdk().chat.completions.create(model="auto", messages=ask)  # type: ignore[arg-type]
    assert caught.value.code == "context_length_exceeded"
    assert headgate.get("/health/ready").status_code == 200


def test_explain_tells_the_story_of_a_request(headgate: Headgate) -> None:
    """`headgate explain` and /requests/{id} show rules, attempts and seconds × price."""
    raw = headgate.sdk().chat.completions.with_raw_response.create(
        model="auto",
        messages=[{"role": "user", "content": "Which is larger, 17 or 71?"}],
        extra_headers={"x-headgate-cache": "off", "x-headgate-tags": "feature=faq"},
        user="ada",
    )
    request_id = raw.headers["x-headgate-request-id"]
    record = headgate.get(f"/requests/{request_id}").json()
    assert record["request"]["tags"] == {"feature": "faq"}
    assert record["request"]["user"] == "ada"
    (charge,) = record["charges"]
    assert charge["machine_ns"] > 0
    expected = Decimal(charge["machine_ns"]) * Decimal(charge["unit_prices"]["usd_per_hour"]) / 3600
    assert abs(Decimal(charge["cost_nano_usd"]) - expected) <= 1
    story = headgate.cli("explain", request_id).stdout
    assert "feature" in story
    assert f"backend={raw.headers['x-headgate-backend']}" in story or "answered" in story
    unknown = headgate.cli("explain", "no-such-request", check=False)
    assert unknown.returncode == 1
    assert "no-such-request" in unknown.stderr


def test_route_explain_executes_nothing(headgate: Headgate) -> None:
    """POST /route/explain shows rules, features and candidates without writing a row."""
    import httpx

    before = _total_requests(headgate)
    ask = {"model": "auto", "messages": [{"role": "user", "content": "Write a poem about rain."}]}
    decision = httpx.post(f"{headgate.url}/route/explain", json=ask).json()
    assert decision["candidates"]
    assert [rule["subject"] for rule in decision["rules"] if rule["matched"]]
    assert decision["features"]["task"] == "creative"
    assert _total_requests(headgate) == before


def test_report_adds_up(headgate: Headgate) -> None:
    """`report costs` as JSON, CSV and table: the groups' costs sum to the total."""
    headgate.sdk().chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "Name a fruit."}], max_tokens=8
    )
    report = json.loads(
        headgate.cli("report", "costs", "--group-by", "backend,task", "--format", "json").stdout
    )
    assert report["group_by"] == ["backend", "task"]
    assert sum(Decimal(row["cost_usd"]) for row in report["rows"]) == Decimal(
        report["totals"]["cost_usd"]
    )
    assert Decimal(report["totals"]["cost_usd"]) > 0
    table = headgate.cli("report", "costs", "--group-by", "backend").stdout
    assert any(name in table for name in ("nano", "small", "base"))
    rows = list(
        csv.DictReader(io.StringIO(headgate.cli("report", "costs", "--format", "csv").stdout))
    )
    assert rows
    assert "cost_usd" in rows[0]
    assert headgate.cli("report", "costs", "--group-by", "nonsense", check=False).returncode == 2


def test_terminal_commands_work_against_it(headgate: Headgate) -> None:
    """chat prints an answer with its route, status a screen, both without an error."""
    chat = headgate.cli("chat", "What is 1 + 1?").stdout
    assert "cache" in chat
    assert "$" in chat
    status = json.loads(headgate.cli("status", "--json").stdout)
    assert status["health"]["status"] == "ok"


def test_metrics_are_prometheus(headgate: Headgate) -> None:
    """/metrics parses, and counts requests, tokens, cache hits and cost."""
    from prometheus_client.parser import text_string_to_metric_families

    names = {
        family.name for family in text_string_to_metric_families(headgate.get("/metrics").text)
    }
    assert {
        "headgate_request_duration_seconds",
        "headgate_time_to_first_token_seconds",
        "headgate_overhead_seconds",
        "headgate_cache_queries",
        "headgate_cache_hits",
        "headgate_tokens",
        "headgate_cost_usd",
    } <= names


class Weather(BaseModel):
    """What the weather is in a city."""

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


def test_model_is_made_to_call_a_function(headgate: Headgate) -> None:
    """Whole, streamed, out of the cache and as a response; models that do not know when to call
    are not left to choose, and the route says so."""
    tool = openai.pydantic_function_tool(Weather)
    ask: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": "How warm is it in Berlin, in celsius?"}],
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "Weather"}},
        "max_tokens": 120,
        "temperature": 0,
    }
    sdk = headgate.sdk()
    whole = sdk.chat.completions.parse(**ask)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    (call,) = whole.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    with sdk.chat.completions.stream(**ask, extra_headers={"x-headgate-cache": "off"}) as stream:
        told = stream.get_final_completion().choices[0]
    assert told.finish_reason == "tool_calls"
    assert told.message.tool_calls
    Weather.model_validate_json(told.message.tool_calls[0].function.arguments)
    wait_for(lambda: _cache_of(headgate, ask) == "exact", what="an exact hit")
    response = sdk.responses.create(
        model="auto",
        input="How warm is it in Berlin, in celsius?",
        tools=[{"type": "function", **tool["function"]}],  # type: ignore[typeddict-item]
        tool_choice="required",
        max_output_tokens=200,
    )
    assert response.output[0].type == "function_call"
    with pytest.raises(openai.BadRequestError) as refusal:
        sdk.chat.completions.create(**{**ask, "tool_choice": "auto"})
    assert refusal.value.param == "tools"
    story = httpx.post(f"{headgate.url}/route/explain", json=ask, timeout=30).json()
    assert (story["rule"], story["winner"]) == ("tool-calls", "base")
    assert story["facts"]["needs"] == ["tool_choice"]


def _cache_of(headgate: Headgate, ask: dict[str, object], cache: str | None = None) -> str:
    raw = headgate.sdk().chat.completions.with_raw_response.create(  # type: ignore[call-overload]
        **ask, extra_headers={"x-headgate-cache": cache} if cache else {}
    )
    return str(raw.headers["x-headgate-cache"])


def _total_requests(headgate: Headgate) -> int:
    return int(headgate.get("/reports/costs").json()["totals"]["requests"])


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
