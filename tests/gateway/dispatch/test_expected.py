"""What simulations and replays say of cascades is what cascades do on the same facts."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from backends.echo import EchoBackend
from backends.wire import ChatCompletionRequest, Message
from gateway.ledger.money import usd_text
from gateway.routing.climbs import SOURCES, Told, climb
from gateway.routing.judges import Calibration, Judges, Signals, Spread
from gateway.routing.past import read_past
from gateway.routing.policy_book import LoadedPolicy, PolicyBook
from gateway.routing.replay import replay
from gateway.routing.simulate import Prompt, simulate_all
from gateway.settings import RoutingSettings
from policies.model import Accept
from tests.gateway.dispatch.climbing import SURE, UNSURE, ladder
from tests.gateway.serving import Gateway, gateway

DOUBTFUL = -0.5
"""P(good) 0.61 where nothing is calibrated."""
TEXTS = ("what is two and two?", "name a colour", "who wrote it?")


def policy(folder: Path, text: str, name: str) -> LoadedPolicy:
    (folder / f"{name}.toml").write_text(f"[default]\n{text}\n")
    return PolicyBook(RoutingSettings(policy=name, policy_dirs=[str(folder)])).get()


def backends(low: float) -> dict[str, EchoBackend]:
    return {
        "low": EchoBackend("low", reply="it is five", logprob=low),
        "high": EchoBackend("high", reply="it is four", logprob=DOUBTFUL),
        "spare": EchoBackend("spare", reply="yes"),
    }


async def asked(served: Gateway) -> list[Any]:
    return [await served.settled(await served.chat(text, max_tokens=9)) for text in TEXTS]


async def replayed(served: Gateway, *policies: LoadedPolicy) -> list[dict[str, Any]]:
    assert await served.parts.ledger.flush()
    async with served.parts.engine.connect() as connection:
        past = await read_past(connection, since_us=0, until_us=1 << 62)
    parts = served.parts
    cards = parts.registry.cards()
    found = replay(past, list(policies), cards, parts.estimator, parts.router.judges)
    return list(found["policies"])


@pytest.mark.parametrize("low", [SURE, DOUBTFUL, UNSURE])
async def test_replay_of_a_cascade_is_what_it_did_and_would_do(tmp_path: Path, low: float) -> None:
    """Its own policy costs what was booked; another bar leads where it leads when served."""
    bar = "cascade = ['low', 'high', 'spare']\naccept = {{ judge = 'logprob', min = {} }}"
    strict, loose = (policy(tmp_path, bar.format(one), f"bar{one}") for one in (0.95, 0.5))
    straight = policy(tmp_path, "route = 'high'", "straight")
    made = ladder(tmp_path)
    (tmp_path / "policies" / "test.toml").write_text(f"[default]\n{bar.format(0.95)}\n")
    async with gateway(made, backends(low)) as served:
        rows = await asked(served)
        same, other, direct = await replayed(served, strict, loose, straight)
    booked = sum(row.request.cost_nano_usd for row in rows)
    assert same["verdicts"] == {"recorded": len(TEXTS)}
    assert same["cost_usd"] == usd_text(booked)
    (tmp_path / "policies" / "test.toml").write_text(f"[default]\n{bar.format(0.5)}\n")
    (tmp_path / "again").mkdir()
    async with gateway(replace(made, state_dir=str(tmp_path / "again")), backends(low)) as served:
        live = await asked(served)
    for report, lived in ((same, rows), (other, live)):
        last = [row.request.backend for row in lived]
        shares = {n: last.count(n) / len(last) for n in ("low", "high", "spare")}
        assert report["shares"] == pytest.approx(shares)
        rungs = [sum(a.verdict is not None for a in row.request.attempts) for row in lived]
        assert report["rungs"] == pytest.approx(np.mean(rungs))
    assert direct["verdicts"] == {}
    if low == UNSURE:
        assert Decimal(direct["cost_usd"]) < Decimal(same["cost_usd"]), "lost rungs are not paid"


@pytest.mark.parametrize("low", [SURE, DOUBTFUL, UNSURE])
@pytest.mark.parametrize("bar", [0.5, 0.95])
async def test_simulated_cascade_goes_where_the_served_one_goes(
    tmp_path: Path, low: float, bar: float
) -> None:
    """From the signals of a file of outcomes: the same backend, rungs and cost."""
    made = ladder(tmp_path, f"judge = 'logprob', min = {bar}")
    async with gateway(made, backends(low)) as served:
        rows = await asked(served)
        router, cards = served.parts.router, served.parts.registry.cards()
        loaded = served.parts.book.get()
        prompts = [
            Prompt(
                ChatCompletionRequest(
                    model="auto", messages=[Message(role="user", content=text)], max_tokens=9
                ),
                {"low": 0.0, "high": 1.0},
                {"low": Signals(logprob=low, margin=0.0, entropy=0.0, tokens=3)},
            )
            for text in TEXTS
        ]
        (report,) = simulate_all(prompts, [loaded], router, cards)["policies"]
        costs = [
            {name: router.estimates(router.facts(p.request))[name].cost_nano_usd for name in cards}
            for p in prompts
        ]
    last = [row.request.backend for row in rows]
    assert report["shares"] == {last[0]: 1.0}
    assert report["verdicts"] == {"recorded": len(TEXTS)}
    assert report["measured_quality"] == (0.0 if last[0] == "low" else 1.0)
    rungs = [a.backend for a in rows[0].request.attempts if a.verdict is not None]
    assert report["rungs"] == len(rungs)
    expected = sum(sum(cost[name] or 0 for name in rungs) for cost in costs)
    assert Decimal(report["cost_usd"]) == Decimal(expected) / 10**9


def told(**changes: Any) -> Told:
    one = {name: np.array([value]) for name, value in (("a", 0.5), ("b", 0.6), ("c", 0.9))}
    price = {name: np.array([value]) for name, value in (("a", 1.0), ("b", 10.0), ("c", 100.0))}
    made: dict[str, Any] = {"quality": one, "costs": price, "seconds": price}
    return Told(**{**made, "looks": {}, "p_good": {}, "gain": {}, **changes})


CALIBRATED = Judges(
    backends={"a": {"answer": Calibration(weights=(), offset=0.0)}},
    spread={"a": {"answer": Spread(own=(-9.0, 9.0), above={"b": (-9.0, 0.0), "c": (-1.0, 0.0)})}},
)


@pytest.mark.parametrize(
    ("judge", "judges", "changes", "cost", "source"),
    [
        # the judge is as likely to be sure as not; b's answers after it are never judged
        ("answer", CALIBRATED, {}, 1 + 0.5 * 10 + 0.5 * 100, "question"),
        # nothing is calibrated: 0.5 and 0.6 are below the bar
        ("answer", Judges(), {}, 1 + 10 + 100, "question"),
        ("answer", Judges(), {"p_good": {"a": np.array([0.9])}}, 1, "recorded"),
        # the judge could not say
        ("answer", Judges(), {"p_good": {"a": np.array([-1.0])}}, 111, "question"),
        # a form is kept, as far as anybody knows
        ("format", Judges(), {}, 1, "question"),
        # three answers of each rung but the last
        ("consistency", Judges(), {}, 3 + 30 + 100, "question"),
        # and a judge that is paid by the look
        (
            "backend:c",
            Judges(),
            {"looks": {name: np.array([7.0]) for name in "abc"}},
            1 + 7 + 10 + 7 + 100,
            "question",
        ),
    ],
)
def test_climb_pays_every_rung_that_answers_and_its_judges(
    judge: str, judges: Judges, changes: dict[str, Any], cost: float, source: str
) -> None:
    """Expected costs by hand; the least certain verdict names the source."""
    found = climb(["a", "b", "c"], Accept(judge=judge, min=0.8), told(**changes), judges)
    assert found.cost[0] == pytest.approx(cost)
    assert SOURCES[int(found.source[0])] == source
    assert sum(share[0] for share in found.stands.values()) == pytest.approx(1.0)


def test_rejection_says_something_of_the_rungs_above() -> None:
    """A question that one backend failed is a harder one: the next one's promise falls with it."""
    found = climb(["a", "c"], Accept(min=0.8), told(), CALIBRATED)
    # of c's two promises after a look, one apart in log-odds and 0.9 in the mean, the lower one
    rejected = 1 / (1 + np.exp(-1.796))
    assert rejected + 1 / (1 + np.exp(-2.796)) == pytest.approx(2 * 0.9, abs=1e-3)
    assert found.quality[0] == pytest.approx(0.5 + 0.5 * rejected, abs=1e-3)


def test_unknown_quality_of_a_rung_that_is_not_reached_does_not_matter() -> None:
    """It is NaN only where somebody gets there."""
    unknown = {**told().quality, "c": np.array([np.nan])}
    kept = {"quality": unknown, "p_good": {"a": np.array([0.9])}}
    assert climb(["a", "c"], Accept(), told(**kept), Judges()).quality[0] == 0.9
    lost = {"quality": unknown, "p_good": {"a": np.array([0.1])}}
    assert np.isnan(climb(["a", "c"], Accept(), told(**lost), Judges()).quality[0])
