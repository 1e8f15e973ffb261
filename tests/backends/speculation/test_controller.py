"""`auto` speculates where it wins and rests where it loses, by what it measures."""

import random

import pytest

from backends.contract import SamplingParams
from backends.engine.request import Request
from backends.speculation.controller import Controller


def some_requests(count: int) -> list[Request]:
    """Sequences that decode."""
    return [
        Request(request_id=str(i), prompt_token_ids=[1], params=SamplingParams(), max_tokens=100)
        for i in range(count)
    ]


def simulate(
    *, base_ns: float, draft_ns: float, guess_ns: float, rate: float, batch: int, steps: int = 600
) -> tuple[float, float]:
    """Run a machine on which a step takes base + draft per draft token, and a guess its own time.

    Returns:
        Draft tokens per sequence and step in the second half; and the time per token of the
        answer there, relative to no speculation.
    """
    chance = random.Random(5)
    controller = Controller(num_tokens=4)
    requests = some_requests(batch)
    drafted, tokens, spent = 0, 0, 0.0
    for step in range(steps):
        counted = step >= steps // 2
        limits = None
        if not controller.plain_step(batch):
            limits = controller.limits("p", 1, requests, batch)
        total = 0
        if limits is not None and sum(limits):
            total = sum(limits)
            controller.guessed("p", total, round(guess_ns * total))
            for request, limit in zip(requests, limits, strict=True):
                accepted = 0
                while accepted < limit and chance.random() < rate:
                    accepted += 1
                if limit:
                    controller.verified("p", request, limit, accepted)
                tokens += accepted if counted else 0
        noise = 1.0 + 0.1 * chance.random()
        took = (base_ns + draft_ns * total) * noise
        controller.step_took(batch, total, round(took))
        if counted:
            drafted += total
            tokens += batch
            spent += took + guess_ns * total
    plain = base_ns * 1.05 / batch
    return drafted / (batch * (steps - steps // 2)), spent / tokens / plain


def test_controller_speculates_where_drafts_are_nearly_free() -> None:
    """One sequence, cheap verification, good guesses: nearly all the drafts it may, and faster."""
    drafts, slowdown = simulate(base_ns=1e6, draft_ns=2e4, guess_ns=1e3, rate=0.8, batch=1)
    assert drafts > 3.5
    assert slowdown < 0.45


@pytest.mark.parametrize(
    ("draft_ns", "guess_ns", "rate", "batch"),
    [
        (2e4, 1e3, 0.02, 1),  # the guesses are wrong
        (2e4, 9e5, 0.6, 1),  # guessing takes as long as computing
        (3e4, 1e3, 0.5, 32),  # in a full batch a draft costs what a token costs
    ],
)
def test_controller_rests_where_speculation_loses(
    draft_ns: float, guess_ns: float, rate: float, batch: int
) -> None:
    """Hardly a draft is made, and the loss against no speculation is small."""
    drafts, slowdown = simulate(
        base_ns=1e6, draft_ns=draft_ns, guess_ns=guess_ns, rate=rate, batch=batch
    )
    assert drafts < 0.2
    assert slowdown < 1.05


def test_controller_guesses_shorter_when_fewer_are_right() -> None:
    """The depth follows acceptance and cost."""
    deep, _ = simulate(base_ns=1e6, draft_ns=1.5e5, guess_ns=0, rate=0.9, batch=1)
    shallow, _ = simulate(base_ns=1e6, draft_ns=1.5e5, guess_ns=0, rate=0.4, batch=1)
    assert deep > 3.0
    assert 0.5 < shallow < 2.5


def test_controller_tells_requests_apart() -> None:
    """Of two requests in one batch, only the one whose guesses are right is guessed for."""
    controller = Controller(num_tokens=4)
    good, bad = some_requests(2)
    for _ in range(30):
        controller.step_took(2, 0, 1_000_000)
        controller.step_took(2, 8, 2_200_000)
        controller.verified("p", good, 4, 4)
        controller.verified("p", bad, 4, 0)
    limits = controller.limits("p", 1, [good, bad], 2)
    assert limits is not None
    assert limits[0] == 4
    assert limits[1] == 0


def test_controller_tries_a_loser_again() -> None:
    """What lost may win later: a resting proposer gets a short probe now and then."""
    controller = Controller(num_tokens=4)
    (request,) = some_requests(1)
    controller.step_took(1, 0, 1_000_000)
    for _ in range(50):
        controller.step_took(1, 4, 1_900_000)
        controller.verified("p", request, 4, 0)
    answers = [controller.limits("p", 1, [request], 1) for _ in range(300)]
    assert answers.count([2]) == 3
    assert answers.count(None) == 297


def test_controller_probes_bring_a_winner_back() -> None:
    """After the load has changed in its favour, a rested proposer comes back."""
    controller = Controller(num_tokens=4)
    (request,) = some_requests(1)
    for wins in (False, True):
        for _ in range(4000):
            limits = None
            if not controller.plain_step(1):
                limits = controller.limits("p", 1, [request], 1)
            count = limits[0] if limits else 0
            if count:
                controller.guessed("p", count, 0)
                controller.verified("p", request, count, count if wins else 0)
            controller.step_took(1, count, 1_000_000 + 50_000 * count)
        assert (controller.limits("p", 1, [request], 1) == [4]) == wins


def test_controller_single_odd_measurements_change_nothing() -> None:
    """Other processes make a step many times longer now and then; the decision stays."""
    controller = Controller(num_tokens=4)
    (request,) = some_requests(1)
    for step in range(200):
        odd = 20 if step % 7 == 0 else 1
        controller.step_took(1, 0, 1_000_000 * odd)
        controller.step_took(1, 4, 1_100_000 * (20 if step % 11 == 0 else 1))
        controller.verified("p", request, 4, 3)
        if step > 10:
            assert controller.limits("p", 1, [request], 1) == [4]
