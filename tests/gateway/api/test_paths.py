"""The paths beside chats: completions, embeddings, models, health, metrics, explain, admin."""

import re
import time
from pathlib import Path
from typing import Any

from backends.client.openai_http import OpenAIHTTPBackend
from backends.echo import EchoBackend
from gateway.settings import BackendSettings
from tests.gateway.serving import Gateway, decode, events, gateway, settings


async def test_completions_answer_whole_and_as_a_stream(tmp_path: Path) -> None:
    """/v1/completions keeps OpenAI's shape in both forms."""
    async with gateway(settings(tmp_path)) as served:
        whole = await served.client.post(
            "/v1/completions", json={"model": "small", "prompt": "one two"}
        )
        assert whole.status_code == 200
        body = decode(whole)
        assert body["object"] == "text_completion"
        assert body["id"].startswith("cmpl-")
        assert body["choices"][0]["text"]
        streamed = await served.client.post(
            "/v1/completions", json={"model": "small", "prompt": "one two", "stream": True}
        )
        chunks = events(streamed)
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        assert text == body["choices"][0]["text"]
        assert chunks[-1]["headgate"]["backend"] == "small"


async def test_embeddings_go_to_the_encoder_by_name_and_by_auto(tmp_path: Path) -> None:
    """An encoder is asked for embeddings, never for chats, and its work is booked."""
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="engine", model="m", tier="small"),
        BackendSettings(name="minilm", kind="encoder", model="all-MiniLM-L6-v2"),
    )
    made = {"small": EchoBackend("small"), "minilm": EchoBackend("minilm", ns_per_token=1000)}
    async with gateway(chosen, made) as served:
        for model in ("minilm", "auto"):
            answer = await served.client.post(
                "/v1/embeddings", json={"model": model, "input": ["a b", "c"]}
            )
            assert answer.status_code == 200, answer.text
            body = decode(answer)
            assert [entry["index"] for entry in body["data"]] == [0, 1]
            assert body["model"] == "minilm"
            assert answer.headers["x-headgate-backend"] == "minilm"
            assert (await served.settled(answer)).charges[0].prompt_tokens == 3
        refused = await served.chat(model="minilm")
        error = decode(refused)["error"]
        assert (refused.status_code, error["param"]) == (400, "model")
        assert error["message"] == "The model 'minilm' cannot chat; these can: small."


async def test_models_can_be_sent_back_as_model(tmp_path: Path) -> None:
    """Each id of /v1/models is accepted by /v1/models/{id} and as `model`."""
    async with gateway(settings(tmp_path)) as served:
        listed = [entry["id"] for entry in decode(await served.client.get("/v1/models"))["data"]]
        assert {"auto", "small", "base", "policy:test"} <= set(listed)
        for name in listed:
            assert (await served.client.get(f"/v1/models/{name}")).status_code == 200, name
            answer = await served.chat(model=name)
            assert answer.status_code == 200, (name, answer.text)
            again = await served.chat(model=decode(answer)["model"])
            assert again.status_code == 200


async def test_readiness_needs_one_backend_liveness_none(tmp_path: Path) -> None:
    """With every backend down /health/ready is 503, /health/live 200, /health tells which."""
    made = {name: EchoBackend(name, fault="refuse") for name in ("small", "base")}
    async with gateway(settings(tmp_path), made) as served:
        ready = await served.client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.headers["retry-after"]
        assert (await served.client.get("/health/live")).status_code == 200
        health = decode(await served.client.get("/health"))
        assert health["status"] == "unavailable"
        assert len([p for p in health["problems"] if "not ready" in p]) == 2
        made["base"].fault = None
        await served.parts.registry.probe("base")
        assert (await served.client.get("/health/ready")).status_code == 200
        assert decode(await served.client.get("/health"))["status"] == "degraded"


async def test_invalid_policy_edit_is_reported_and_the_old_one_stays(tmp_path: Path) -> None:
    """/health names the problem; requests go on under the last valid version."""
    async with gateway(settings(tmp_path)) as served:
        before = (await served.chat()).headers["x-headgate-policy"]
        (tmp_path / "policies" / "test.toml").write_text("[default]\nroute = 7\n")
        answer = await served.chat()
        assert answer.headers["x-headgate-policy"] == before
        health = decode(await served.client.get("/health"))
        assert health["status"] == "degraded"
        assert any("test.toml" in problem for problem in health["problems"])


async def test_metrics_bear_the_contracts_names(tmp_path: Path) -> None:
    """The names hold, counters count, and no label comes from a key, user or request."""
    async with gateway(settings(tmp_path)) as served:
        await served.chat(temperature=0, user="somebody")
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        await served.chat(temperature=0)
        await served.chat(stream=True)
        scraped = await served.client.get("/metrics")
        assert scraped.headers["content-type"].count("charset") == 1, "Prometheus 3 refuses two"
        text = scraped.text
        for name in (
            "headgate_time_to_first_token_seconds_bucket",
            "headgate_time_per_output_token_seconds_bucket",
            "headgate_request_duration_seconds_bucket",
            "headgate_queue_time_seconds_bucket",
            "headgate_overhead_seconds_bucket",
            "headgate_tokens_total",
            "headgate_cache_queries_total",
            "headgate_cache_hits_total",
        ):
            assert name in text, name
        assert "# TYPE headgate_cost_usd_total counter" in text
        assert 'headgate_cache_hits_total{layer="exact"} 1.0' in text
        assert "headgate_cache_queries_total 2.0" in text
        assert "somebody" not in text
        assert "headgate_requests_in_flight 0.0" in text
        assert "headgate_ledger_up 1.0" in text
        assert "headgate_ledger_waiting_bytes" in text


async def test_ejected_address_is_a_problem_and_a_metric(tmp_path: Path) -> None:
    """What requests can do without is named in /health, and counted for alerts."""
    one = BackendSettings(name="small", kind="echo", model="m", tier="small")
    two = OpenAIHTTPBackend("small", ["http://one.test/v1", "http://two.test/v1"])
    async with gateway(settings(tmp_path, one), {"small": two}) as served:
        metric = "headgate_backend_addresses_ejected"
        assert f'{metric}{{backend="small"}} 0.0' in (await served.client.get("/metrics")).text
        two.breakers["http://two.test/v1"].eject(time.monotonic(), "boom")
        problems = decode(await served.client.get("/health"))["problems"]
        assert "backend 'small': 1 of 2 addresses are ejected" in problems
        assert f'{metric}{{backend="small"}} 1.0' in (await served.client.get("/metrics")).text


async def explained(served: Gateway, **body: Any) -> Any:
    """What would be decided on a body; `auto` unless it names a model."""
    answer = await served.client.post("/route/explain", json={"model": "auto", **body})
    assert answer.status_code == 200, answer.text
    return decode(answer)


async def test_explain_spends_nothing(tmp_path: Path) -> None:
    """/route/explain says what would be decided, and leaves no row and no call behind."""
    small = EchoBackend("small")
    async with gateway(settings(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        answer = await served.client.post(
            "/route/explain",
            json={"model": "auto", "messages": [{"role": "user", "content": "hi"}]},
            headers={"x-headgate-tags": "short=yes"},
        )
        assert answer.status_code == 200
        told = decode(answer)
        assert told["winner"] == "small"
        assert told["rule"] == "short"
        assert told["rules"][0]["matched"] is False
        assert len(small.requests) == 0
        assert await served.rows() == 0


async def test_explain_takes_a_responses_body(tmp_path: Path) -> None:
    """A body of /v1/responses is explained as the chat that it stands for."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 9}
    item = {"role": "user", "content": "hi"}
    async with gateway(settings(tmp_path)) as served:
        expected = await explained(served, **chat)
        for given in ("hi", [item]):
            assert await explained(served, input=given, max_output_tokens=9) == expected


async def test_explain_takes_an_embeddings_body(tmp_path: Path) -> None:
    """`input` asks for vectors where it is a list of texts, or its model makes nothing else."""
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="engine", model="m", tier="small"),
        BackendSettings(name="minilm", kind="encoder", model="all-MiniLM-L6-v2"),
    )
    made = {name: EchoBackend(name) for name in ("small", "minilm")}
    async with gateway(chosen, made) as served:
        for body in (
            {"input": ["a text"]},
            {"input": "a text", "encoding_format": "float"},
            {"input": "a text", "model": "minilm"},
        ):
            assert (await explained(served, **body))["winner"] == "minilm"
        assert (await explained(served, input="a text"))["winner"] == "small"


async def test_explain_names_the_fields_of_a_responses_body(tmp_path: Path) -> None:
    """What is not offered is refused by the name that the client wrote."""
    async with gateway(settings(tmp_path)) as served:
        refused = await served.client.post(
            "/route/explain", json={"model": "auto", "input": "hi", "background": True}
        )
        assert (refused.status_code, decode(refused)["error"]["param"]) == (400, "background")


async def test_request_can_be_read_again_with_its_story(tmp_path: Path) -> None:
    """/requests/{id} has the decision's reasons, the attempts and the charges; no text."""
    async with gateway(settings(tmp_path)) as served:
        answer = await served.chat("a secret question")
        path = f"/requests/{answer.headers['x-headgate-request-id']}"
        shown = await served.client.get(path)
        told = decode(shown)
        assert told["request"]["rule"] == "default"
        assert told["request"]["attempts"][0]["backend"] == "small"
        assert told["charges"][0]["kind"] == "answer"
        assert "secret" not in shown.text


async def test_report_counts_what_was_asked(tmp_path: Path) -> None:
    """/reports/costs has the contract's shape and sees requests at once."""
    async with gateway(settings(tmp_path)) as served:
        await served.chat(metadata={"feature": "faq"})
        await served.chat()
        told = decode(await served.client.get("/reports/costs?group_by=backend,tag:feature"))
        assert told["group_by"] == ["backend", "tag:feature"]
        assert told["totals"]["requests"] == 2
        assert {"rows", "machine_cost_usd", "idle_cost_usd", "unattributed_cost_usd"} <= set(told)


async def test_admin_budgets_are_set_listed_and_removed(tmp_path: Path) -> None:
    """A budget set over HTTP counts from the next request on."""
    async with gateway(settings(tmp_path)) as served:
        made = await served.client.post(
            "/admin/budgets", json={"scope": "team:anonymous", "limit_usd": "0.5", "window": "hour"}
        )
        assert made.status_code == 201
        listed = decode(await served.client.get("/admin/budgets"))["budgets"]
        assert listed[0]["limit_usd"] == "0.5"
        assert listed[0]["left_usd"] == "0.5"
        bad = await served.client.post("/admin/budgets", json={"scope": "x", "limit_usd": "1"})
        assert bad.status_code == 400
        gone = await served.client.delete("/admin/budgets?scope=team:anonymous&window=hour")
        assert gone.status_code == 200
        assert decode(await served.client.get("/admin/budgets"))["budgets"] == []
        again = await served.client.delete("/admin/budgets?scope=team:anonymous&window=hour")
        assert again.status_code == 404


async def test_admin_cache_forgets_a_team(tmp_path: Path) -> None:
    """DELETE /admin/cache makes the next repeat a miss."""
    async with gateway(settings(tmp_path)) as served:
        await served.chat(temperature=0)
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        gone = await served.client.delete("/admin/cache?namespace=anonymous")
        assert decode(gone)["removed"] >= 1
        assert (await served.chat(temperature=0)).headers["x-headgate-cache"] == "miss"


async def test_schema_names_every_path(tmp_path: Path) -> None:
    """The OpenAPI document lists what is there, with the chat body's fields."""
    async with gateway(settings(tmp_path)) as served:
        document = decode(await served.client.get("/schema"))
        assert document["openapi"].startswith("3.1")
        for path in ("/v1/chat/completions", "/v1/models/{name}", "/requests/{request_id}"):
            assert path in document["paths"], path
        chat = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
        assert {"messages", "temperature", "stream"} <= chat.keys()
        page = await served.client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for path in re.findall(r'href="([^"?]+)', page.text):
            assert (await served.client.get(path)).status_code == 200, path


async def test_tokenize_needs_a_backend_that_can(tmp_path: Path) -> None:
    """A backend without /tokenize gives a clear 404; a body without text a 400."""
    async with gateway(settings(tmp_path)) as served:
        answer = await served.client.post("/tokenize", json={"model": "small", "prompt": "hi"})
        assert answer.status_code == 404
        assert "'small'" in decode(answer)["error"]["message"]
        bad = await served.client.post("/tokenize", json={"model": "small"})
        assert (bad.status_code, decode(bad)["error"]["param"]) == (400, "prompt")
