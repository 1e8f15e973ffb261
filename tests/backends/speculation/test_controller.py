"""`auto` speculates where it wins and rests where it loses, by what it measures."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import SamplingParams
from backends.engine.request import Request
from backends.speculation.controller import Controller


class Guesser:
    """A proposer's description: all that the controller reads of it."""

    name = "p"

    def __init__(self, *, costly: bool = False, foresees: bool = False) -> None:
        self.costly = costly
        self.foresees = foresees
        self.reach = 4 if foresees else 1

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Always the same token."""
        return [[1] * limit for limit in limits]

    def forget(self, request: Request) -> None:
        """It remembers nobody."""


LOOKUP, MODEL = Guesser(), Guesser(costly=True)
PREDICTION = Guesser(foresees=True)


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
            limits = controller.limits(MODEL if guess_ns > 1e4 else LOOKUP, requests, batch)
        total = 0
        if limits is not None and sum(limits):
            total = sum(limits)
            asked = [r for r, limit in zip(requests, limits, strict=True) if limit]
            controller.guessed("p", asked, total, round(guess_ns * total))
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
        (1e5, 1e3, 0.02, 1),  # the guesses are wrong
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
    controller.limits(LOOKUP, [good, bad], 2)
    for _ in range(30):
        controller.step_took(2, 0, 1_000_000)
        controller.step_took(2, 8, 2_200_000)
        controller.verified("p", good, 4, 4)
        controller.verified("p", bad, 4, 0)
    assert controller.limits(LOOKUP, [good, bad], 2) == [4, 0]


@pytest.mark.parametrize(("proposer", "gaps"), [(LOOKUP, [96, 96]), (MODEL, [192, 384])])
def test_controller_tries_a_loser_again(proposer: Guesser, gaps: list[int]) -> None:
    """What lost may win later: short probes for two requests, a lookup's as often as before, a
    model's ever more rarely."""
    controller = Controller(num_tokens=4)
    requests = some_requests(8)
    controller.limits(proposer, requests, 8)
    for _ in range(50):
        controller.step_took(8, 0, 1_000_000)
        controller.step_took(8, 32, 9_000_000)
        controller.guessed("p", requests, 32, 9_000_000)
        for request in requests:
            controller.verified("p", request, 4, 0)
    probes = []
    for step in range(900):
        controller.plain_step(8)
        limits = controller.limits(proposer, requests, 8)
        if limits is not None:
            assert sorted(limits) == [0, 0, 0, 0, 0, 0, 2, 2]
            asked = [r for r, limit in zip(requests, limits, strict=True) if limit]
            controller.guessed("p", asked, 4, 1_000_000)
            probes.append(step)
    starts = probes[::4]
    assert [probes[i + 3] - probes[i] for i in range(0, 12, 4)] == [3] * 3
    assert [later - earlier - 3 for earlier, later in pairwise(starts)][:2] == gaps


def test_controller_a_lookup_that_finds_nothing_is_no_trial() -> None:
    """A probe lasts until something was guessed."""
    controller = Controller(num_tokens=4)
    requests = some_requests(4)
    controller.limits(LOOKUP, requests, 4)
    for _ in range(40):
        controller.step_took(4, 0, 1_000_000)
        controller.step_took(4, 16, 9_000_000)
        controller.verified("p", requests[0], 4, 0)
    for _ in range(20):
        limits = controller.limits(LOOKUP, requests, 4)
        assert limits is not None
        controller.guessed("p", requests[:2], 0, 1_000)


def test_controller_a_model_is_measured_before_it_is_asked_for_all() -> None:
    """Its first guesses are for two requests; the best case for all of them is then tried."""
    controller = Controller(num_tokens=4)
    requests = some_requests(8)
    for took_ns in (80_000_000, 400_000):  # the first has to read the prompts
        controller.plain_step(8)
        controller.step_took(8, 0, 10_000_000)
        limits = controller.limits(MODEL, requests, 8)
        assert limits is not None
        asked = [r for r, limit in zip(requests, limits, strict=True) if limit]
        assert len(asked) == 2
        controller.guessed("p", asked, 4, took_ns)
    assert controller.limits(MODEL, requests, 8) == [4] * 8


def test_controller_catching_up_is_not_the_price_of_a_guess() -> None:
    """The first guess for a request (its prompt has to be read) does not count, the next do."""
    controller = Controller(num_tokens=4)
    (request,) = some_requests(1)
    for step in range(4):
        controller.plain_step(1)
        controller.step_took(1, 0, 1_000_000)
        assert controller.limits(MODEL, [request], 1) == ([2] if step < 2 else [4])
        controller.guessed("p", [request], 4, 50_000_000 if step == 0 else 20_000)
        controller.verified("p", request, 4, 4)


def test_controller_probes_bring_a_winner_back() -> None:
    """After the load has changed in its favour, a rested proposer comes back."""
    controller = Controller(num_tokens=4)
    (request,) = some_requests(1)
    for wins in (False, True):
        for _ in range(4000):
            limits = None
            if not controller.plain_step(1):
                limits = controller.limits(LOOKUP, [request], 1)
            count = limits[0] if limits else 0
            if count:
                controller.guessed("p", [request], count, 0)
                controller.verified("p", request, count, count if wins else 0)
            controller.step_took(1, count, 1_000_000 + 50_000 * count)
        assert (controller.limits(LOOKUP, [request], 1) == [4]) == wins


def test_controller_single_odd_measurements_change_nothing() -> None:
    """Other processes make a step many times longer now and then; the decision stays."""
    controller = Controller(num_tokens=4)
    (request,) = some_requests(1)
    controller.limits(LOOKUP, [request], 1)
    for step in range(200):
        odd = 20 if step % 7 == 0 else 1
        controller.step_took(1, 0, 1_000_000 * odd)
        controller.step_took(1, 4, 1_100_000 * (20 if step % 11 == 0 else 1))
        controller.verified("p", request, 4, 3)
        if step > 10:
            assert controller.limits(LOOKUP, [request], 1) == [4]


def foreseen(controller: Controller, *, draft_ns: int, tokens: int = 40) -> Request:
    """A request with a prediction, where steps are known and others' predictions were right."""
    other, request = some_requests(2)
    request.prediction_token_ids = [1] * tokens
    controller.limits(PREDICTION, [other], 1)
    for _ in range(5):
        controller.step_took(1, 0, 1_000_000)
        controller.step_took(1, 4, 1_000_000 + 4 * draft_ns)
    for _ in range(10):
        controller.verified("p", other, 16, 16)
    return request


def guess(controller: Controller, request: Request, right: float = 1.0) -> int:
    """One step in which this part of the guesses was right: how many were made."""
    limits = controller.limits(PREDICTION, [request], 1)
    count = limits[0] if limits else 0
    if count:
        controller.guessed("p", [request], count, 0)
        controller.verified("p", request, count, int(right * count))
    return count


def test_controller_a_prediction_is_followed_at_once_where_drafts_are_nearly_free() -> None:
    """A wrong guess of any length would hardly be noticed."""
    controller = Controller(num_tokens=4)
    assert guess(controller, foreseen(controller, draft_ns=20_000, tokens=13)) == 16


def test_controller_guesses_from_a_prediction_grow_where_drafts_are_dear() -> None:
    """The first costs 3% of the steps foreseen, however right others' were; those that were right
    pay for longer ones."""
    controller = Controller(num_tokens=4)
    request = foreseen(controller, draft_ns=390_000)
    assert [guess(controller, request) for _ in range(4)] == [3, 7, 16, 16]


def test_controller_short_predictions_are_not_followed_where_drafts_are_dear() -> None:
    """A single wrong guess would cost more than 3% of so short an answer."""
    controller = Controller(num_tokens=4)
    request = foreseen(controller, draft_ns=400_000, tokens=13)
    assert not any(guess(controller, request) for _ in range(300))


@given(
    draft_ns=st.integers(10_000, 2_000_000),
    tokens=st.integers(1, 300),
    right=st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), max_size=30),
)
def test_controller_a_prediction_never_costs_more_than_its_stake(
    draft_ns: int, tokens: int, right: list[float]
) -> None:
    """Whatever is right of it, and however often it is tried."""
    controller = Controller(num_tokens=4)
    request = foreseen(controller, draft_ns=draft_ns, tokens=tokens)
    cost_ns = 0.0
    for part in right:
        count = guess(controller, request, part)
        cost_ns += draft_ns * count - 1_000_000 * int(part * count)
        assert cost_ns <= 0.03 * 1_000_000 * tokens + 1e-3
