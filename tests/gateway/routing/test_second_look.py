"""A second look at a request: when the encoder is asked, what its vector changes, who pays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from backends.echo import EchoBackend
from gateway.cache.semantic import BackendEncoder
from gateway.routing.classifier import Classifier
from gateway.routing.second_head import SecondHead
from gateway.routing.second_look import SecondLooks
from gateway.settings import BackendSettings, CacheSettings, SemanticSettings
from policies.model import Decision, RequestFeatures
from tests.gateway.serving import Gateway, gateway, settings, shipped_classifier

DIMENSIONS = 384
FEATURES = RequestFeatures(
    task="chat", difficulty=0.5, prompt_tokens=9, quality={"small": 0.5, "base": 0.9}
)


def second_head(bias: float = 0.0) -> SecondHead:
    """Passes the first head's log-odds on, `small`'s moved by `bias`, whatever the vector."""
    weights = np.zeros((2 + DIMENSIONS, 3), dtype=np.float32)
    weights[0, 0] = weights[1, 1] = 1.0
    return SecondHead(
        backends=("small", "base"),
        weights=weights,
        bias=np.array([bias, 0.0, 0.0], dtype=np.float32),
        shift=(0.1, 0.1),
        encoder="bundled:minilm",
        card={"helps": True},
    )


def looks(encoder: EchoBackend | None = None, *, deadline_s: float = 5.0) -> SecondLooks:
    return SecondLooks(
        second_head(bias=2.0),
        BackendEncoder(encoder or EchoBackend("minilm"), model="minilm"),
        reference="small",
        deadline_s=deadline_s,
        min_gap_nano_usd=100,
    )


def decided(*names: str) -> Decision:
    return Decision(rule="default", candidates=names)


def by_quality(features: RequestFeatures) -> Decision:
    """Small from 0.55 on, else base."""
    small = features.quality["small"] >= 0.55
    return decided("small", "base") if small else decided("base", "small")


@pytest.mark.parametrize(
    ("wish", "costs", "small", "why"),
    [
        ("never", (10, 1000), 0.5, "the policy wants none"),
        ("always", (10, 10), 0.0, None),
        ("unsure", (10, 1000), 0.5, None),
        (None, (10, 1000), 0.6, None),
        ("unsure", (10, 1000), 0.2, "the first head is sure enough"),
        ("unsure", (10, 50), 0.5, "candidates cost within $4e-08 of each other"),
        ("unsure", (None, 1000), 0.5, "candidates cost within $0 of each other"),
    ],
)
def test_second_look_is_taken_where_it_may_change_a_choice_that_matters(
    wish: Any, costs: tuple[int | None, int], small: float, why: str | None
) -> None:
    """Always if the policy says so; else only unsure requests whose candidates' prices differ."""
    features = replace(FEATURES, quality={"small": small, "base": 0.9})
    price = dict(zip(("small", "base"), costs, strict=True))
    found = looks().why_not(wish, features, by_quality(features), price.get, by_quality)
    assert found == why


def test_second_look_needs_a_choice_and_known_backends() -> None:
    """One candidate, or a first head that does not know the backends: nobody is asked."""
    one = looks().why_not("always", FEATURES, decided("small"), lambda _: 1, by_quality)
    assert one == "there is nothing to choose from"
    strange = replace(FEATURES, quality={"small": 0.5})
    found = looks().why_not("always", strange, decided("a", "b"), lambda _: 1, by_quality)
    assert found == "the first head does not know the second one's backends"


async def test_second_look_changes_quality_and_difficulty_and_is_remembered() -> None:
    """The second head's opinion counts; the same text is not encoded twice."""
    encoder = EchoBackend("minilm")
    made = looks(encoder)
    for _ in range(2):
        found = await made.look("what is two and two?", FEATURES)
        assert found.result == "used"
        assert found.features.quality["small"] == pytest.approx(0.7311, abs=1e-3)
        assert found.features.difficulty == pytest.approx(1 - 0.7311, abs=1e-3)
    assert len(encoder.requests) == 1
    assert found.encoding is None, "a remembered opinion costs nothing"


@pytest.mark.parametrize(
    ("encoder", "result"),
    [
        (EchoBackend("minilm", delay_s=30.0), "late"),
        (EchoBackend("minilm", fault="refuse"), "failed"),
        (EchoBackend("minilm", dimensions=7), "failed"),
    ],
)
async def test_second_look_that_is_late_or_fails_leaves_the_first_opinion(
    encoder: EchoBackend, result: str
) -> None:
    """Decided without; counted; asked again next time."""
    made = looks(encoder, deadline_s=0.01 if result == "late" else 5.0)
    found = await made.look("what is two and two?", FEATURES)
    assert found.result == result
    assert found.features == FEATURES
    assert made.results == {result: 1}
    if found.encoding is not None:
        found.encoding.cancel()


def served(folder: Path, wish: str) -> Any:
    chosen = settings(
        folder,
        *(BackendSettings(name=n, kind="echo", model=n, tier=n) for n in ("small", "base")),
        BackendSettings(name="minilm", kind="encoder", model="bundled:minilm"),
        cache=CacheSettings(
            redis="memory", semantic=SemanticSettings(enabled=True, encoder="minilm")
        ),
    )
    (folder / "policies" / "test.toml").write_text(
        f'second_look = "{wish}"\n[[rules]]\nname = "easy"\nroute = "small"\n'
        'when = { quality = { backend = "small", min = 0.95 } }\n'
        '[default]\nroute = "base"\nfallbacks = ["small"]\n'
    )
    return chosen


async def asked(running: Gateway, text: str) -> Any:
    answer = await running.chat(text, temperature=0)
    return (await running.settled(answer)), answer


@pytest.mark.parametrize("wish", ["always", "never"])
async def test_gateway_encodes_a_question_once_and_books_it(tmp_path: Path, wish: str) -> None:
    """Routing's vector serves the semantic cache; row and explanation say what became of it."""
    shipped = shipped_classifier()
    classifier = Classifier(replace(shipped.head, second=second_head(bias=60.0)))
    backends = {name: EchoBackend(name) for name in ("small", "base", "minilm")}
    async with gateway(served(tmp_path, wish), backends, classifier=classifier) as running:
        found, answer = await asked(running, "what is two and two?")
        body = {"model": "auto", "messages": [{"role": "user", "content": "and three?"}]}
        told = (await running.client.post("/route/explain", json=body)).json()
        metrics = (await running.client.get("/metrics")).text
    assert len(backends["minilm"].requests) == 1
    assert [charge.kind for charge in found.charges if charge.kind == "encoder"] == ["encoder"]
    assert found.request.decided_on is not None
    always = wish == "always"
    assert answer.headers["x-headgate-backend"] == ("small" if always else "base")
    assert found.request.decided_on.second_look == ("used" if always else None)
    assert ("asks nobody" in told["second_look"]) == always
    assert ('headgate_second_looks_total{result="used"} 1.0' in metrics) == always


async def test_gateway_decides_without_a_late_encoder(tmp_path: Path) -> None:
    """The request is answered by the first head's choice; its row says late."""
    shipped = shipped_classifier()
    classifier = Classifier(replace(shipped.head, second=second_head(bias=60.0)))
    backends = {name: EchoBackend(name) for name in ("small", "base")}
    backends["minilm"] = EchoBackend("minilm", fault="refuse")
    async with gateway(served(tmp_path, "always"), backends, classifier=classifier) as running:
        found, answer = await asked(running, "what is two and two?")
    assert answer.headers["x-headgate-backend"] == "base"
    assert found.request.decided_on is not None
    assert found.request.decided_on.second_look == "failed"
