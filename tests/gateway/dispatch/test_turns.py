"""Whose turn it is after a failure."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
    ContextLengthError,
    InvalidRequestError,
)
from gateway.dispatch.turns import RESERVE, ClosedError, RetryBudget, Turns
from gateway.limits.fair_queue import QueueFullError
from gateway.settings.failure import FailureSettings

SETTINGS = FailureSettings(retries=1, backoff_s=0.1, backoff_max_s=1.0)


def turns(*names: str, budget: RetryBudget | None = None, **options: Any) -> Turns:
    """A request's turns, drawing the middle of each pause."""
    contexts: dict[str, int | None] = options.pop("contexts", {})
    return Turns(
        names,
        settings=SETTINGS,
        budget=budget or RetryBudget(0.2),
        draw=lambda: 0.5,
        context_of=contexts.get,
        **options,
    )


def test_chain_comes_before_retries_and_the_last_one_is_asked_again() -> None:
    """Without a word from the policy each has one turn, the last one a second after a pause."""
    asked = turns("a", "b")
    assert (asked.after(BackendUnavailableError("down"), started=False), asked.backend) == (0, "b")
    pause_s = asked.after(BackendResponseError("500", status=500), started=False)
    assert (pause_s, asked.backend) == (pytest.approx(0.1), "b")
    assert asked.after(BackendUnavailableError("down"), started=False) is None


def test_policy_asks_each_as_often_as_it_says_with_growing_pauses() -> None:
    """retries = 2: three calls of each backend; 0: one of each."""
    asked, calls = turns("a", "b", retries=2), []
    pause_s: float | None = 0.0
    while pause_s is not None:
        calls.append((asked.backend, round(pause_s, 3)))
        pause_s = asked.after(BackendUnavailableError("down"), started=False)
    assert calls == [("a", 0), ("a", 0.1), ("a", 0.2), ("b", 0), ("b", 0.1), ("b", 0.2)]
    assert turns("a", retries=0).after(BackendUnavailableError("down"), started=False) is None


@pytest.mark.parametrize(
    "error",
    [
        BackendTimeoutError("silent"),
        BackendResponseError("401", status=401),
        BackendOverloadedError("429", retry_after_s=60),
        QueueFullError("full"),
        ClosedError("open"),
    ],
)
def test_what_a_second_call_cannot_help_goes_to_the_next(error: BackendError) -> None:
    """Timeouts, refused credentials, long Retry-After, full queues and open breakers."""
    asked = turns("a", "b", retries=3)
    assert (asked.after(error, started=False), asked.backend) == (0, "b")
    assert asked.after(error, started=False) is None


def test_retry_after_is_waited_for_when_it_is_short() -> None:
    """Never less than the server asked for."""
    assert turns("a").after(BackendOverloadedError("429", retry_after_s=0.5), started=False) == 0.6


def test_another_replica_is_asked_at_once_before_the_next_backend() -> None:
    """One of two addresses failed: the other one may have the request, without a pause."""
    asked = turns("a", "b", replicas_of={"a": 2, "b": 1}.__getitem__)
    assert (asked.after(BackendStreamError("cut"), started=False), asked.backend) == (0, "a")
    assert (asked.after(BackendStreamError("cut"), started=False), asked.backend) == (0, "b")


def test_nothing_follows_a_token_unless_a_restart_is_allowed() -> None:
    """What a client has seen is not written twice behind its back."""
    cut = BackendStreamError("cut")
    assert turns("a", "b", retries=3).after(cut, started=True) is None
    asked = turns("a", "b", restart=True)
    assert (asked.after(cut, started=True), asked.backend) == (0, "b")


def test_request_too_long_for_one_goes_to_a_wider_one_only() -> None:
    """A backend whose context is no wider is passed over; a bad request is nobody's."""
    contexts = {"a": 100, "b": 100, "c": 200}
    asked = turns("a", "b", "c", contexts=contexts)
    assert (asked.after(ContextLengthError("too long"), started=False), asked.backend) == (0, "c")
    assert asked.after(ContextLengthError("too long"), started=False) is None
    assert turns("a", "b").after(InvalidRequestError("n"), started=False) is None


def test_budget_bounds_retries_of_an_outage() -> None:
    """Of many requests that all fail, about a fifth is asked twice, beyond the first few."""
    budget, second = RetryBudget(0.2), 0
    for _ in range(1000):
        budget.earn()
        asked = turns("a", budget=budget)
        second += asked.after(BackendUnavailableError("down"), started=False) is not None
    assert 200 <= second <= 200 + RESERVE
    assert not RetryBudget(0.0).spend()


_ERRORS: list[Callable[[], BackendError]] = [
    lambda: BackendUnavailableError("x"),
    lambda: BackendOverloadedError("x", retry_after_s=0.1),
    lambda: BackendTimeoutError("x"),
    lambda: BackendStreamError("x"),
    lambda: ContextLengthError("x"),
    lambda: InvalidRequestError("x"),
]


@given(
    st.integers(1, 5),
    st.none() | st.integers(0, 3),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(_ERRORS), st.booleans()), max_size=40),
)
def test_turns_end_and_keep_the_order_of_the_chain(
    length: int, retries: int | None, restart: bool, errors: list[tuple[Any, bool]]
) -> None:
    """However calls fail, a request is asked of each backend at most 1 + retries times, in order,
    and pauses stay within bounds."""
    names = [f"b{n}" for n in range(length)]
    asked, calls = turns(*names, retries=retries, restart=restart), ["b0"]
    for make, started in errors:
        pause_s = asked.after(make(), started=started)
        if pause_s is None:
            break
        assert 0 <= pause_s <= 2 * SETTINGS.backoff_max_s + 0.1
        assert restart or not started
        calls.append(asked.backend)
    assert calls == sorted(calls)
    most = 1 + (SETTINGS.retries if retries is None else retries)
    assert all(calls.count(name) <= most for name in names)
