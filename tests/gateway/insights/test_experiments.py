"""Experiments: arms by what was chosen, intervals by who sticks together."""

import asyncio
import random

import pytest

from gateway.insights.experiments import Difference, mean_of
from gateway.ledger.feedback import add_feedback
from gateway.ledger.records import CandidateRecord, RequestRecord, Settlement
from gateway.ledger.repository import Repository
from tests.gateway.cli.conftest import Headgate, headgate

__all__ = ["headgate"]


def test_mean_counts_clusters_not_requests() -> None:
    """Ten users who each ask ten times alike tell as much as ten requests, not as a hundred."""
    draw = random.Random(1)
    users = [(n / 10, draw.random()) for n in range(10)]
    once, often = mean_of(users), mean_of(users * 10)
    assert once is not None
    assert often is not None
    assert often.n == 100
    assert often.clusters == 10
    assert often.value == pytest.approx(once.value)
    assert often.error == pytest.approx(once.error)


def test_intervals_hold_what_they_promise() -> None:
    """Of 400 experiments without any difference, about one in twenty claims one."""
    draw = random.Random(2)
    wrong = 0
    for _ in range(400):
        arms = []
        for _ in range(2):
            values = []
            for user in range(40):
                taste = draw.gauss(0, 1)
                values += [
                    (user / 40, taste + draw.gauss(0, 0.3)) for _ in range(draw.randint(1, 6))
                ]
            arms.append(mean_of(values))
        found = Difference.of(*arms)
        assert found is not None
        wrong += not found.low <= 0 <= found.high
    assert 8 <= wrong <= 36


def test_nothing_and_one_draw_have_no_interval() -> None:
    """No values: no mean; one user alone: a mean without an interval, and no difference."""
    assert mean_of([]) is None
    one = mean_of([(0.1, 1.0), (0.1, 2.0)])
    assert one is not None
    assert one.shown()["low"] is None
    assert Difference.of(one, one) is None


def test_report_has_arms_by_choice_with_feedback(headgate: Headgate) -> None:
    """A request that fell back counts for the arm that was drawn; the command prints both arms."""
    rows = [row(f"r{n}", arm="a" if n % 2 else "b", draw=n / 40) for n in range(40)]
    rows[1] = row("r1", arm="a", draw=1 / 40, backend="b")
    headgate.run("db", "upgrade")
    asyncio.run(fill(headgate.database_url, rows))
    report = headgate.json("report", "experiment", "--policy", "p", "--rule", "ab", "--json")
    assert [(arm["arm"], arm["requests"], arm["draws"]) for arm in report["arms"]] == [
        ("b", 20, 20),
        ("a", 20, 20),
    ]
    arm = report["arms"][1]
    assert arm["cost_usd"]["value"] == pytest.approx(2e-6)
    assert arm["feedback"]["n"] == 20
    against = arm["against_baseline"]["feedback"]
    assert against["low"] > 0, "callers liked arm a better, and there are enough of them"
    words = headgate.run("report", "experiment", "--policy", "p", "--rule", "ab").stdout
    assert "− b" in words
    gone = headgate.run("report", "experiment", "--policy", "p", "--rule", "other")
    assert gone.exit_code == 1
    wrong = headgate.run("report", "experiment", "--policy", "p", "--rule", "ab", "--baseline", "c")
    assert "there are: a, b" in wrong.output


def row(request_id: str, *, arm: str, draw: float, backend: str | None = None) -> RequestRecord:
    """Decided by the split `ab`; arm a costs twice as much."""
    other = "b" if arm == "a" else "a"
    return RequestRecord(
        request_id=request_id, endpoint="chat/completions", model="auto", started_at=1000.0,
        duration_ms=100.0, outcome="ok", status=200, policy="p", rule="ab", draw=draw,
        backend=backend or arm, probability=0.5, cost_nano_usd=2000 if arm == "a" else 1000,
        candidates=(CandidateRecord(backend=arm), CandidateRecord(backend=other)),
    )  # fmt: skip


async def fill(url: str, rows: list[RequestRecord]) -> None:
    """The rows, and what callers said: a is good, b is middling."""
    from gateway.ledger.database import open_engine

    engine = open_engine(url)
    await Repository(engine).write([Settlement(request=one, charges=()) for one in rows])
    async with engine.begin() as connection:
        for n, one in enumerate(rows):
            good = one.candidates[0].backend == "a"
            score = (0.9 if good else 0.5) + 0.01 * (n % 3)
            await add_feedback(connection, one.request_id, score=score, comment="", now=1001.0)
    await engine.dispose()
