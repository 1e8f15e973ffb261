"""Coefficients are found from noisy observations, and never below zero."""

import math
import random
import statistics

import pytest

from backends.fitting import LinearFit


def test_coefficients_are_found_whatever_their_scale() -> None:
    """From a prior that is wrong by far: each term as it was, give or take the noise."""
    rng = random.Random(1)
    truth = (300e3, 20e3, 90e3, 40.0)
    fit = LinearFit((8.0, 1.0, 1.2, 0.0005))
    assert not fit.fitted
    for _ in range(2000):
        terms = (
            1,
            rng.choice([0, 0, rng.randrange(600)]),
            rng.randrange(1, 32),
            rng.randrange(9000),
        )
        exact = sum(a * b for a, b in zip(truth, terms, strict=True))
        fit.observe(terms, exact * rng.uniform(0.9, 1.1))
    for found, true in zip(fit.coefficients(), truth, strict=True):
        assert found == pytest.approx(true, rel=0.1)


def test_prior_holds_where_nothing_can_be_told_apart() -> None:
    """One kind of step only: the total is right, its parts are as the prior says."""
    fit = LinearFit((8.0, 1.0))
    for _ in range(500):
        fit.observe((1, 2), 50.0)
    first, second = fit.coefficients()
    assert first + 2 * second == pytest.approx(50.0, rel=0.01)
    assert first == pytest.approx(8 * second, rel=0.01)


def test_no_coefficient_falls_below_zero() -> None:
    """A term that seems to speed things up is worth nothing."""
    rng = random.Random(2)
    fit = LinearFit((1.0, 1.0))
    for _ in range(500):
        size = rng.random()
        fit.observe((1, size), 2.0 - size)
    assert min(fit.coefficients()) >= 0


def test_totals_that_are_too_long_now_and_then_move_little() -> None:
    """One observation in ten of what is dear took twice as long, for reasons of its own: its
    coefficient stays nearer to the truth than by plain least squares."""

    def found(doubtful: float) -> float:
        rng = random.Random(3)
        fit = LinearFit((1.0, 1.0), doubtful=doubtful)
        for _ in range(2000):
            dear = rng.randrange(20, 60) if rng.random() < 0.2 else 0
            total = 30.0 + 5.0 * dear
            fit.observe((30, dear), total * (2.5 if dear and rng.random() < 0.1 else 1.0))
        return fit.coefficients()[1]

    assert found(math.inf) > 5.6
    assert 4.9 < found(0.3) < 5.25


def test_long_memory_is_steadier_and_follows_all_the_same() -> None:
    """Steps of which few hold a prompt, beside neighbours: what a prompt's token takes wanders less
    with ten times the memory; when it doubles, that is found after as many steps."""

    def wanders(memory: int) -> tuple[float, float]:
        rng = random.Random(5)
        fit = LinearFit((8.0, 1.0), doubtful=0.5, memory=memory)
        found = []
        for step in range(60_000):
            prompt = rng.randrange(100, 600) if rng.random() < 0.02 else 0
            exact = 400.0 + prompt * (60.0 if step < 30_000 else 120.0)
            fit.observe((1, prompt), exact * rng.lognormvariate(0.0, 0.4))
            if step in range(15_000, 30_000, 500):
                found.append(fit.coefficients()[1])
        return statistics.stdev(found) / statistics.mean(found), fit.coefficients()[1] / found[-1]

    (short, after_short), (long, after_long) = wanders(1_000), wanders(10_000)
    assert long < short / 2
    assert after_short == pytest.approx(2, rel=0.3)
    assert after_long == pytest.approx(2, rel=0.15)


def test_nonsense_is_no_observation() -> None:
    """Nothing done, or no time: nothing learnt."""
    fit = LinearFit((1.0, 1.0))
    fit.observe((0, 0), 5.0)
    fit.observe((1, 1), 0.0)
    fit.observe((1, 1), -1.0)
    assert not fit.fitted
