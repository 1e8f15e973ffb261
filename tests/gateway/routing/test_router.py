"""Model names, narrowing, exact counts, refusals, explanations."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backends.contract import BackendHealth
from backends.echo import EchoBackend
from backends.errors import BackendUnavailableError
from backends.wire import ChatCompletionRequest, EmbeddingRequest, Message
from gateway.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    PolicyDenied,
    Unavailable,
)
from gateway.repeats import Asked
from gateway.routing.classifier import Classifier
from gateway.routing.health import BackendRegistry
from gateway.routing.policy_book import PolicyBook
from gateway.routing.router import Router, sticky_draw
from gateway.settings import BackendSettings, RoutingSettings, Settings
from policies.model import BudgetState


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load()


SETTINGS = Settings(
    models={"gpt-4o": "gpt-4", "gpt-4": "auto", "fast": "backend:nano-1", "loop": "loop"},
    backends=[
        BackendSettings(name="nano-1", model="n", tier="nano"),
        BackendSettings(name="nano-2", model="n", tier="nano"),
        BackendSettings(name="small", model="s", tier="small", context_tokens=400),
        BackendSettings(name="big", model="b", tier="base", accepts=["tools"]),
    ],
)


class Counting(EchoBackend):
    """An echo that says how many tokens it counts, and knows nothing of tools."""

    tokens: int | None = None
    fails = False
    counted = 0

    async def probe(self) -> BackendHealth:
        return BackendHealth(ready=True, capacity=8, accepts=())

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        self.counted += 1
        if self.fails:
            raise BackendUnavailableError("gone")
        return self.tokens


class Rig:
    """A router over echoes with a policy of the test's own."""

    def __init__(self, folder: Path, classifier: Classifier, policy: str, **others: str) -> None:
        for name, text in {"mine": policy, **others}.items():
            (folder / f"{name}.toml").write_text(text)
        self.backends = {b.name: Counting(b.name) for b in SETTINGS.backends}
        self.backends["minilm"] = Counting("minilm")
        self.registry = BackendRegistry(SETTINGS, self.backends)
        book = PolicyBook(RoutingSettings(policy="mine", policy_dirs=[str(folder)]))
        self.router = Router(SETTINGS, classifier, book, self.registry)

    async def ask(self, model: str = "auto", text: str = "hello there", **fields: Any) -> Any:
        for name in self.backends:
            await self.registry.probe(name)
        options = {k: fields.pop(k) for k in ("policy_name", "budget", "asked") if k in fields}
        request = ChatCompletionRequest(
            model=model, messages=[Message(role="user", content=text)], **fields
        )
        return await self.router.decide(self.router.facts(request), **options)


ALL = '[default]\nroute = "small"\nfallbacks = ["nano", "base"]\n'


@pytest.fixture
def rig(tmp_path: Path, classifier: Classifier) -> Rig:
    others = {"other": '[default]\nroute = "base"\n', "narrow": '[default]\nroute = "small"\n'}
    return Rig(tmp_path, classifier, ALL, bad="nonsense", **others)


@pytest.mark.parametrize(
    ("model", "candidates"),
    [
        ("auto", ("small", "nano-1", "nano-2", "big")),
        ("gpt-4o", ("small", "nano-1", "nano-2", "big")),
        ("nano", ("nano-1", "nano-2")),
        ("nano-2", ("nano-2",)),
        ("backend:nano-2", ("nano-2",)),
        ("small", ("small",)),
        ("fast", ("nano-1",)),
        ("policy:other", ("big",)),
        ("policy:cheapest", ("nano-1", "nano-2", "small", "big")),
    ],
)
async def test_model_narrows_the_candidates(
    rig: Rig, model: str, candidates: tuple[str, ...]
) -> None:
    """Aliases, auto, policies, tiers and backends each name the backends that the contract says."""
    routed = await rig.ask(model)
    assert routed.decision.candidates == candidates
    assert routed.refusal is None


@pytest.mark.parametrize(
    ("model", "header", "error", "words"),
    [
        ("nope", None, ModelNotFound, "there are: auto, base, big"),
        ("backend:nano", None, ModelNotFound, "'backend:nano' does not exist"),
        ("policy:nope", None, ModelNotFound, "There is no policy 'nope'"),
        ("policy:../mine", None, ModelNotFound, "There is no policy"),
        ("loop", None, ModelNotFound, "'loop'"),
        ("auto", "nope", InvalidRequest, "There is no policy 'nope'"),
        ("policy:mine", "other", InvalidRequest, "send one of them"),
        ("auto", "bad", Unavailable, "'bad' is not valid"),
    ],
)
async def test_unknown_model_or_policy_is_refused(
    rig: Rig, model: str, header: str | None, error: type[Exception], words: str
) -> None:
    """What does not exist is named, with what does."""
    with pytest.raises(error, match=words):
        await rig.ask(model, policy_name=header)


async def test_policy_header_chooses_the_policy(rig: Rig) -> None:
    """x-headgate-policy replaces the configured policy for one request."""
    routed = await rig.ask(policy_name="other")
    assert routed.loaded_policy.name == "other"
    assert routed.decision.candidates == ("big",)


async def test_refusal_names_what_stands_in_the_way(rig: Rig) -> None:
    """A missing capability is 400 with the field, too long 400, the policy's choice 403."""
    tools = await rig.ask("small", tools=[{"type": "function"}])
    assert isinstance(tools.refusal, InvalidRequest)
    assert tools.refusal.param == "tools"
    long = await rig.ask("small", text="word " * 500)
    assert isinstance(long.refusal, ContextLengthExceeded)
    assert long.refusal.param == "messages"
    assert "widest context of the backends that may answer is 400 tokens" in long.refusal.message
    narrow = await rig.ask("policy:narrow", text="word " * 500)
    assert "may answer is 400 tokens" in narrow.refusal.message, "whatever others could hold"
    policy = await rig.ask("small", policy_name="other")
    assert isinstance(policy.refusal, PolicyDenied)
    assert "leaves no backend for model 'small'" in policy.refusal.message
    fine = await rig.ask("auto", tools=[{"type": "function"}])
    assert fine.decision.candidates == ("big",)


async def test_denial_holds_whatever_model_is_named(tmp_path: Path, classifier: Classifier) -> None:
    """A named model does not get round a deny rule."""
    denying = '[[rules]]\nname = "no"\nwhen = { team = ["anonymous"] }\ndeny = "not you"\n'
    rig = Rig(tmp_path, classifier, denying + ALL)
    for model in ("auto", "small", "backend:big"):
        routed = await rig.ask(model)
        assert isinstance(routed.refusal, PolicyDenied)
        assert routed.refusal.message == "not you"
        assert routed.decision.denied == "not you"


async def test_exact_count_decides_where_the_bound_does_not_fit(rig: Rig) -> None:
    """Only a backend that the upper bound left out is asked, again after it could not answer."""
    small = rig.backends["small"]
    small.tokens = 90
    asked = Asked(EmbeddingRequest(model="auto", input=""), {}, [])

    assert (await rig.ask(text="hi", asked=asked)).decision.candidates[0] == "small"
    assert small.counted == 0
    routed = await rig.ask(text="word " * 70, max_tokens=20, asked=asked)
    assert routed.decision.candidates[0] == "small"
    assert routed.facts.prompt_tokens_exact == {"small": 90}
    assert [b.counted for b in rig.backends.values()] == [0, 0, 1, 0, 0]
    small.tokens = 390
    routed = await rig.ask(text="word " * 70, max_tokens=20, asked=asked)
    assert "small" not in routed.decision.candidates
    small.fails = True
    routed = await rig.ask(text="word " * 70, max_tokens=20, asked=asked)
    assert "small" not in routed.decision.candidates, "without a count the bound holds"
    counted = small.counted
    routed = await rig.ask(text="word " * 3000, asked=asked)
    assert small.counted == counted, "hopelessly long prompts are not counted"


async def test_refusal_of_a_long_prompt_says_who_could_count_it(
    tmp_path: Path, classifier: Classifier
) -> None:
    """Bytes stand for tokens where nobody counts: then the operator reads what to do about it."""
    rig = Rig(tmp_path, classifier, '[default]\nroute = "small"\n')
    asked = Asked(EmbeddingRequest(model="auto", input=""), {}, [])
    refusal = (await rig.ask(text="word " * 90, asked=asked)).refusal
    assert isinstance(refusal, ContextLengthExceeded)
    assert "(at most 602 tokens)" in refusal.message
    assert "Nobody counts the tokens of 'small': with a `tokenizer`" in refusal.message
    rig.backends["small"].tokens = 401
    refusal = (await rig.ask(text="word " * 90, asked=asked)).refusal
    assert refusal is not None
    assert refusal.message == (
        "The prompt (401 tokens) and the answer (1) do not fit; the widest context of the backends "
        "that may answer is 400 tokens."
    )


async def test_embeddings_go_to_the_encoder(rig: Rig) -> None:
    """A text policy leaves embeddings to whoever makes them; a text model cannot."""
    for name in rig.backends:
        await rig.registry.probe(name)
    facts = rig.router.facts(EmbeddingRequest(model="auto", input="hello"))
    assert (await rig.router.decide(facts)).decision.candidates == ("minilm",)
    facts = rig.router.facts(EmbeddingRequest(model="small", input="hello"))
    refusal = (await rig.router.decide(facts)).refusal
    assert isinstance(refusal, InvalidRequest)
    assert refusal.message == "The model 'small' cannot embed; these can: minilm."


async def test_explanation_holds_the_whole_decision(rig: Rig) -> None:
    """Every rule's verdict, features, candidates and winner, as plain data, nothing executed."""
    for name in rig.backends:
        await rig.registry.probe(name)
    request = ChatCompletionRequest(
        model="nano", messages=[Message(role="user", content="What is 12 + 30?")], max_tokens=5
    )
    facts = rig.router.facts(request, team="t", tags={"env": "prod"})
    story = await rig.router.explain(facts, budget=BudgetState(left=0.5))
    assert (story["winner"], story["rule"], story["budget_left"]) == ("nano-1", "default", 0.5)
    assert [c["backend"] for c in story["candidates"]] == ["nano-1", "nano-2"]
    assert story["policy"].startswith("mine@")
    assert story["features"]["task"] == "maths"
    assert story["rules"] == [
        {"subject": "default", "matched": True, "why": "no rule before it matched"}
    ]
    assert {t["subject"] for t in story["targets"]} == {"backend small", "backend big"}
    assert story["facts"]["tags"] == {"env": "prod"}
    assert all(not backend.requests for backend in rig.backends.values())


async def test_explanation_of_a_refusal(rig: Rig) -> None:
    """A refused request is explained, not raised."""
    for name in rig.backends:
        await rig.registry.probe(name)
    request = ChatCompletionRequest(model="small", messages=[], tools=[{"type": "function"}])
    story = await rig.router.explain(rig.router.facts(request))
    assert story["winner"] is None
    assert (story["refusal"]["status"], story["refusal"]["param"]) == (400, "tools")


def test_models_list_what_can_be_asked_for(rig: Rig) -> None:
    """auto, aliases, tiers, backends and policies, each id once, and each can be looked up."""
    entries = rig.router.names.entries(created=7)
    ids = [entry["id"] for entry in entries]
    assert ids[:5] == ["auto", "gpt-4o", "gpt-4", "fast", "loop"]
    assert {"nano", "nano-1", "small", "base", "big", "minilm", "policy:default"} <= set(ids)
    assert len(ids) == len(set(ids))
    assert all(e["object"] == "model" and e["created"] == 7 for e in entries)
    assert rig.router.names.entry("small", 7) in entries
    assert rig.router.names.entry("backend:big")["id"] == "backend:big"
    for name in ("nope", "policy:nope"):
        with pytest.raises(ModelNotFound):
            rig.router.names.entry(name)


def test_sticky_draw_is_stable_and_even() -> None:
    """One id always draws the same; many ids spread evenly over [0, 1)."""
    draws = [sticky_draw(f"user-{i}") for i in range(4000)]
    assert draws[:10] == [sticky_draw(f"user-{i}") for i in range(10)]
    assert all(0 <= draw < 1 for draw in draws)
    for tenth in range(10):
        share = sum(tenth / 10 <= draw < (tenth + 1) / 10 for draw in draws) / len(draws)
        assert 0.08 < share < 0.12


async def test_repeated_body_is_explored_as_often_as_a_new_one(tmp_path: Path, rig: Rig) -> None:
    """A remembered decision does not keep chance from taking another backend."""
    for name in rig.backends:
        await rig.registry.probe(name)
    (tmp_path / "mine.toml").write_text(ALL)
    routing = RoutingSettings(policy="mine", policy_dirs=[str(tmp_path)], explore=0.4)
    settings = replace(SETTINGS, routing=routing)
    router = Router(settings, Classifier.load(), PolicyBook(routing), rig.registry)
    request = ChatCompletionRequest(model="auto", messages=[Message(role="user", content="hi")])
    facts, asked, now = router.facts(request), Asked(request, {}, []), datetime.now(UTC)

    plain = await router.decide(facts, now=now, luck=0.9, asked=asked)
    assert await router.decide(facts, now=now, luck=0.8, asked=asked) is plain
    explored = await router.decide(facts, now=now, luck=0.1, asked=asked)
    assert (plain.decision.rule, explored.decision.rule) == ("default", "explore")
    assert await router.decide(facts, now=now, luck=0.9, asked=asked) is plain
