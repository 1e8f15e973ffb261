"""One engine behind HTTP: OpenAI's SDK, our client, bad input, clients that go away."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from backends.client.openai_http import OpenAIHTTPBackend
from backends.contract import GenerateRequest
from backends.server import main
from backends.wire import ENGINE_CAPABILITIES
from tests.backends import tiny_tokenizers
from tests.backends.conftest import MakeCheckpoint
from tests.backends.server_process import ServerProcess, server

MESSAGES: list[Any] = [{"role": "user", "content": "the quick brown fox"}]
CONTEXT = 256


@pytest.fixture(scope="module")
def model(make_checkpoint: MakeCheckpoint) -> Path:
    """A random Llama with a byte-level tokenizer and a chat template."""
    vocab_size = tiny_tokenizers.byte_level().get_vocab_size()
    return tiny_tokenizers.save_folder(make_checkpoint(vocab_size=vocab_size))


@pytest.fixture(scope="module")
def live(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of that model, called `tiny`, and of an adapter, called `adapted`."""
    adapter = tmp_path_factory.mktemp("adapter")
    place = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    halves = {f"{place}A.weight": torch.ones(2, 112), f"{place}B.weight": torch.eye(64, 2)}
    save_file(halves, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 64}')
    arguments = ["--model", str(model), "--served-model-name", "tiny", "--max-num-seqs", "8"]
    arguments += ["--served-model-name", "alias", "--lora-modules", f"adapted={adapter}"]
    with server("backends.server", *arguments) as process:
        yield process


@pytest.fixture(scope="module")
def sdk(live: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's client for it."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def http(live: ServerProcess) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client


def chat(sdk: openai.OpenAI, **options: Any) -> Any:
    options = {"max_tokens": 12, "temperature": 0, **options}
    return sdk.chat.completions.create(model="tiny", messages=MESSAGES, **options)


def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(http: httpx.Client) -> int:
    health = http.get("/health").json()
    return int(health["running"]) + int(health["waiting"])


def test_chat_is_repeatable_and_counted(sdk: openai.OpenAI) -> None:
    """A greedy chat gives the same answer twice; usage counts tokens and engine time."""
    first, second = chat(sdk), chat(sdk)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert (first.model, first.object, first.choices[0].finish_reason) == (
        "tiny",
        "chat.completion",
        "length",
    )
    usage = first.usage
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    engine = usage.headgate
    assert engine["prefill_ns"] > 0
    assert engine["decode_ns"] > 0
    assert second.usage.prompt_tokens_details.cached_tokens % 16 == 0


def test_stream_joins_to_the_whole_answer(sdk: openai.OpenAI) -> None:
    """A stream's text and usage are those of the whole answer; usage comes if asked for."""
    whole = chat(sdk, n=2)
    stream = chat(sdk, n=2, stream=True, stream_options={"include_usage": True})
    texts, reasons, usages = ["", ""], [None, None], []
    for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == ["length", "length"]
    assert usages[-1].completion_tokens == whole.usage.completion_tokens == 24
    assert all(usage is None for usage in usages[:-1])
    assert all(chunk.usage is None for chunk in chat(sdk, stream=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_have_the_form_asked_for_streamed_or_not(
    sdk: openai.OpenAI, temperature: float
) -> None:
    """A random model's answers are documents of the schema, every choice, and the same streamed."""
    properties = {"word": {"type": "string", "maxLength": 8}, "kind": {"enum": ["a", "b"]}}
    schema = {"type": "object", "properties": properties, "required": ["word", "kind"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    options: dict[str, Any] = {"response_format": form, "n": 3, "seed": 4, "max_tokens": 150}
    whole = chat(sdk, **options, temperature=temperature)
    texts = ["", "", ""]
    for chunk in chat(sdk, **options, temperature=temperature, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), schema)


def test_completions_take_vllms_forms(sdk: openai.OpenAI) -> None:
    """Of several prompts, each answer is one of the choices, or matches the pattern."""
    forms: list[tuple[dict[str, Any], str]] = [
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"regex": "[0-9]{3}-x"}, "[0-9]{3}-x"),
        ({"grammar": 'root ::= "a" [bc]+ "d"'}, "a[bc]+d?"),
    ]
    for form, pattern in forms:
        answer = sdk.completions.create(
            model="tiny", prompt=["the", "a"], extra_body={"structured_outputs": form}
        )
        assert all(re.fullmatch(pattern, choice.text) for choice in answer.choices)


def test_stream_tells_usage_on_the_way_if_asked(sdk: openai.OpenAI) -> None:
    """`continuous_usage_stats`, as vLLM calls it: nanoseconds so far beside the text."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = chat(sdk, stream=True, max_tokens=40, stream_options=options)
    told = [chunk.usage for chunk in stream if chunk.usage is not None]
    assert [usage.completion_tokens for usage in told] == [16, 32, 40]
    spent = [usage.headgate["decode_ns"] for usage in told]
    assert 0 < spent[0] < spent[1] < spent[2]


def test_chat_logprobs_join_to_the_text(sdk: openai.OpenAI) -> None:
    """Bytes of the listed tokens join to the answer; a greedy token is its place's likeliest."""
    for stream in (False, True):
        answer = chat(sdk, logprobs=True, top_logprobs=2, stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            entries = [e for c in chunks if c.logprobs for e in c.logprobs.content]
            text = "".join(chunk.delta.content or "" for chunk in chunks)
        else:
            entries = answer.choices[0].logprobs.content
            text = answer.choices[0].message.content
        joined = b"".join(bytes(entry.bytes) for entry in entries)
        assert joined.decode("utf-8", "replace") == text
        for entry in entries:
            assert entry.logprob <= 0
            assert entry.top_logprobs[0].token == entry.token
            assert len(entry.top_logprobs) == 2


def test_completions_number_choices_over_prompts(sdk: openai.OpenAI) -> None:
    """Two prompts with two answers each give choices 0 to 3, with log-probabilities beside."""
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "n": 2, "logprobs": 1}
    both = sdk.completions.create(model="tiny", prompt=["the cat", "numbers 1"], **options)
    one = sdk.completions.create(model="tiny", prompt="numbers 1", **options)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[2].text == both.choices[3].text == one.choices[0].text
    assert both.usage is not None
    assert both.usage.completion_tokens == 20
    logprobs = both.choices[3].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == len(logprobs.text_offset or []) == 5
    assert [len(top) for top in logprobs.top_logprobs or []] == [1] * 5
    default = sdk.completions.create(
        model="alias", prompt=[1, 2, 3], extra_body={"ignore_eos": True}
    )
    assert default.usage is not None
    assert (default.model, default.usage.completion_tokens) == ("alias", 16)


def test_completion_stream_joins_to_the_whole_answer(sdk: openai.OpenAI) -> None:
    """Streamed completions carry text per choice."""
    options: dict[str, Any] = {"prompt": ["the", "a"], "max_tokens": 6, "temperature": 0}
    whole = sdk.completions.create(model="tiny", **options)
    texts = ["", ""]
    for chunk in sdk.completions.create(model="tiny", stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_stop_string_ends_the_answer_before_it(sdk: openai.OpenAI) -> None:
    """A stop string, also across tokens, is cut off and named."""
    text = chat(sdk, max_tokens=40).choices[0].message.content
    stop = text[6:9]
    choice = chat(sdk, max_tokens=40, stop=[stop, "never in it"]).choices[0]
    assert choice.message.content == text[: text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)


def test_seed_repeats_an_answer(sdk: openai.OpenAI) -> None:
    """The same seed draws the same answer, another seed another one."""
    texts = [
        chat(sdk, temperature=1, seed=seed, max_tokens=20).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_prediction_changes_no_token(sdk: openai.OpenAI) -> None:
    """A predicted answer is verified: the text stays, and its tokens are counted.

    A long one, as guesses of a short one may cost more than they can win.
    """
    plain = chat(sdk, max_tokens=200)
    text = plain.choices[0].message.content
    told = chat(sdk, max_tokens=200, prediction={"type": "content", "content": text})
    assert told.choices[0].message.content == text
    details = told.usage.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0


def test_model_list(sdk: openai.OpenAI) -> None:
    """Every served name is listed and can be asked for; others are 404."""
    assert [card.id for card in sdk.models.list()] == ["tiny", "alias", "adapted"]
    assert sdk.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("none")


def test_an_adapter_answers_to_its_own_name(sdk: openai.OpenAI) -> None:
    """The same request for another model's name is another model's answer."""
    ask: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    plain, adapted, alias = (
        sdk.chat.completions.create(model=name, **ask) for name in ("tiny", "adapted", "alias")
    )
    assert adapted.model == "adapted"
    assert plain.choices[0].message == alias.choices[0].message
    assert plain.choices[0].message != adapted.choices[0].message


BAD: list[tuple[str, Any, int, str, str | None]] = [
    ("malformed", b'{"model": "tiny",', 400, "invalid_request_error", None),
    ("broken utf-8", b'{"model": "\xff"}', 400, "invalid_request_error", None),
    ("no object", b"[]", 400, "invalid_request_error", None),
    ("no messages", {"messages": None}, 400, "invalid_request_error", "messages"),
    ("empty messages", {"messages": []}, 400, "invalid_request_error", "messages"),
    ("wrong type", {"temperature": "hot"}, 400, "invalid_request_error", "temperature"),
    ("unknown field", {"temprature": 1}, 400, "invalid_request_error", "temprature"),
    ("out of range", {"top_p": 2}, 400, "invalid_request_error", "top_p"),
    ("negative", {"max_tokens": -1}, 400, "invalid_request_error", "max_tokens"),
    ("zero n", {"n": 0}, 400, "invalid_request_error", "n"),
    ("role", {"messages": [{"role": "x"}]}, 400, "invalid_request_error", "messages[0].role"),
    ("tools", {"tools": [{"type": "function"}]}, 400, "invalid_request_error", "tools[0]"),
    (
        "bad schema",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        400,
        "invalid_request_error",
        "response_format",
    ),
    (
        "no schema",
        {"response_format": {"type": "json_schema"}},
        400,
        "invalid_request_error",
        "response_format.json_schema",
    ),
    (
        "two forms",
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        400,
        "invalid_request_error",
        "structured_outputs",
    ),
    (
        "unknown form",
        {"structured_outputs": {"xml": "a"}},
        400,
        "invalid_request_error",
        "structured_outputs.xml",
    ),
    (
        "unknown format",
        {"response_format": {"type": "xml"}},
        400,
        "invalid_request_error",
        "response_format.type",
    ),
    (
        "form and format",
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        400,
        "invalid_request_error",
        "response_format",
    ),
    (
        "bad regex",
        {"structured_outputs": {"regex": "(a"}},
        400,
        "invalid_request_error",
        "structured_outputs",
    ),
    (
        "image",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "invalid_request_error",
        "messages[0].content[0]",
    ),
    ("top_logprobs alone", {"top_logprobs": 2}, 400, "invalid_request_error", "top_logprobs"),
    ("bias", {"logit_bias": {"x": 1}}, 400, "invalid_request_error", "logit_bias"),
    ("bias id", {"logit_bias": {"99999": 1}}, 400, "invalid_request_error", "logit_bias"),
    ("stop id", {"stop_token_ids": [-1]}, 400, "invalid_request_error", "stop_token_ids"),
    ("unknown model", {"model": "gpt-9"}, 404, "model_not_found", "model"),
    ("answer too long", {"max_tokens": 10_000}, 400, "context_length_exceeded", "max_tokens"),
    (
        "prompt too long",
        {"messages": [{"role": "user", "content": "a b c " * 100}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    (
        "megabyte",
        {"messages": [{"role": "user", "content": "long " * 200_000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_refused_by_name(
    http: httpx.Client, body: Any, status: int, code: str, param: str | None, stream: bool
) -> None:
    """Bad input gets the contract's error, streamed or not, and the server goes on."""
    if not isinstance(body, bytes):
        asked = {"model": "tiny", "messages": MESSAGES, "stream": stream, **body}
        body = json.dumps({k: v for k, v in asked.items() if v is not None})
    started = time.monotonic()
    response = http.post("/v1/chat/completions", content=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    if not code.startswith("context"):
        assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert time.monotonic() - started < 3
    assert http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "x"}, {"best_of": 3}])
def test_completion_fields_we_do_not_honour_are_refused(
    http: httpx.Client, field: dict[str, Any]
) -> None:
    """What the engine cannot do is refused, not ignored."""
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", **field})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(field))


def test_stream_left_by_its_client_frees_the_engine(http: httpx.Client) -> None:
    """A client that goes away in mid-stream: nothing runs soon after, its usage is readable."""
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "ignore_eos": True}
    headers = {"x-request-id": "left-alone"}
    with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
    usage = http.get("/requests/left-alone/usage").json()["usage"]
    assert 0 < usage["completion_tokens"] < CONTEXT - usage["prompt_tokens"]
    until(lambda: running(http) == 0)
    assert http.get("/health").json()["kv_cache_usage_ratio"] == 0


def test_call_left_by_its_client_frees_the_engine(http: httpx.Client, live: ServerProcess) -> None:
    """The same for an answer that is not streamed."""
    body = {"model": "tiny", "messages": MESSAGES, "ignore_eos": True, "n": 8}
    headers = {"x-request-id": "hasty"}
    with live.client() as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.post("/v1/chat/completions", json=body, headers=headers, timeout=0.1)
    usage = http.get("/requests/hasty/usage").json()["usage"]
    assert usage["completion_tokens"] < 8 * (CONTEXT - usage["prompt_tokens"])
    until(lambda: running(http) == 0)


def test_tokenize_agrees_with_usage(http: httpx.Client) -> None:
    """/tokenize counts a chat as the engine does; /detokenize turns ids back."""
    count = http.post("/tokenize", json={"messages": MESSAGES}).json()
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    assert count["count"] == len(count["tokens"]) == usage["prompt_tokens"]
    assert count["max_model_len"] == CONTEXT
    ids = http.post("/tokenize", json={"prompt": "héllo 你好"}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "héllo 你好"}
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_clock_is_measured(http: httpx.Client) -> None:
    """Busy grows with work, idle without; with loading they stay within the time since start."""
    first = http.get("/clock").json()
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 30, "ignore_eos": True}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]["headgate"]
    time.sleep(0.1)
    second = http.get("/clock").json()
    # A step's last microseconds are charged to the step after it.
    charged = usage["prefill_ns"] + usage["decode_ns"] + usage["speculation_ns"]
    assert second["busy_ns"] - first["busy_ns"] == pytest.approx(charged, rel=0.1)
    assert second["idle_ns"] - first["idle_ns"] > 50_000_000
    total = second["loading_ns"] + second["busy_ns"] + second["idle_ns"]
    assert 0 < total <= second["now_unix_ns"] - second["started_unix_ns"]


def test_metrics_have_the_contracts_names(http: httpx.Client) -> None:
    """Names, units and vLLM's buckets."""
    text = http.get("/metrics").text
    for name in (
        'headgate_engine_time_to_first_token_seconds_bucket{le="0.001"}',
        'headgate_engine_time_per_output_token_seconds_bucket{le="0.025"}',
        'headgate_engine_request_duration_seconds_bucket{le="0.3"}',
        "headgate_engine_queue_time_seconds_count",
        "headgate_engine_requests_running 0.0",
        "headgate_engine_requests_waiting 0.0",
        "headgate_engine_kv_cache_usage_ratio 0.0",
        'headgate_engine_tokens_total{kind="generated"}',
        "headgate_engine_cache_queries_total",
        'headgate_engine_cache_hits_total{layer="prefix"}',
        'headgate_engine_info{device="cpu"',
    ):
        assert f"\n{name}" in text


async def test_our_client_understands_our_server(live: ServerProcess) -> None:
    """Health, answers, usage and counts through OpenAIHTTPBackend; many streams at once."""
    backend = OpenAIHTTPBackend("tiny", [f"{live.url}/v1"])
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "ignore_eos": True}

    def request(name: str) -> GenerateRequest:
        return GenerateRequest(request_id=name, endpoint="chat/completions", body=body)

    async def read(name: str) -> int:
        last = None
        async for chunk in backend.stream(request(name)):
            last = chunk
        assert last is not None
        assert last.usage is not None
        return last.usage.completion_tokens

    try:
        health = await backend.probe()
        assert (health.ready, health.capacity, health.context_tokens) == (True, 8, CONTEXT)
        assert len(health.model_revision) == 16
        untaught = {"tools", "functions", "reasoning_effort"}
        assert set(health.accepts or ()) == ENGINE_CAPABILITIES - untaught
        assert await asyncio.gather(*(read(f"r{i}") for i in range(12))) == [20] * 12
        whole = await backend.generate(request("whole"))
        assert whole.usage is not None
        assert whole.usage.headgate is not None
        assert whole.usage.headgate.machine_ns > 0
        assert await backend.usage_of("whole") == whole.usage
        assert await backend.count_tokens(body) == whole.usage.prompt_tokens
        assert (await backend.clocks())[0]["busy_ns"] > 0
    finally:
        await backend.aclose()


async def test_two_requests_may_share_an_id(live: ServerProcess) -> None:
    """A client that sends one x-request-id for everything is served all the same."""
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 30, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=live.url, headers={"x-request-id": "same"}) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/chat/completions", json=body) for _ in range(4))
        )
    assert [answer.status_code for answer in answers] == [200] * 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "/nowhere"], 2, "/nowhere"),
        (["--model", "bundled:giant"], 2, "giant"),
        (["--model", "{model}", "--tensor-parallel-size", "2"], 2, "tensor_parallel_size"),
        (["--model", "{model}", "--max-model-len", "9999"], 2, "max_model_len"),
        (["--model", "{model}", "--dtype", "float7"], 2, "float7"),
        (["--model", "{model}", "--lora-modules", "a=/nowhere"], 2, "adapter 'a' in '/nowhere'"),
        (["--model", "{model}", "--lora-modules", "a"], 2, "give NAME=FOLDER"),
    ],
)
def test_bad_start_says_what_is_wrong(
    model: Path, arguments: list[str], code: int, words: str
) -> None:
    """A model or option that cannot be served ends the start with its name and an exit code."""
    result = CliRunner().invoke(main, [a.replace("{model}", str(model)) for a in arguments])
    assert result.exit_code == code
    assert words in result.output
