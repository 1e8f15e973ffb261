"""Turns at a saturated backend: by weight, in order, never for ever."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backends.errors import BackendOverloadedError
from gateway.limits.fair_queue import FairQueue


async def _serve(queue: FairQueue, asks: list[tuple[str, int]], served: list[str]) -> None:
    """All ask at once; whoever gets a place notes its team and gives it back."""

    async def one(team: str, weight: int) -> None:
        await queue.enter(team, weight)
        served.append(team)
        await asyncio.sleep(0)
        queue.leave()

    await asyncio.gather(*(one(*ask) for ask in asks))


async def test_place_is_taken_at_once_where_there_is_room() -> None:
    """Below the limit nobody waits, and places come back."""
    queue = FairQueue("b", lambda: 2, 1.0)
    await queue.enter("a", 1)
    await queue.enter("a", 1)
    assert (queue.running, queue.waiting) == (2, 0)
    queue.leave()
    queue.leave()
    assert queue.running == 0


async def test_flood_of_one_team_does_not_starve_another() -> None:
    """A team with one request waits behind one of the flood's, not behind all."""
    queue = FairQueue("b", lambda: 1, 5.0)
    await queue.enter("first", 1)
    served: list[str] = []
    asks = [("flood", 1)] * 50 + [("small", 1)] * 2
    work = asyncio.create_task(_serve(queue, asks, served))
    await asyncio.sleep(0.02)
    assert queue.waiting == len(asks)
    queue.leave()
    await work
    assert "small" in served[:2]
    assert served[:4].count("small") == 2


async def test_weights_share_the_places() -> None:
    """While both wait, a team of weight 3 gets three turns for the other's one."""
    queue = FairQueue("b", lambda: 1, 5.0)
    await queue.enter("first", 1)
    served: list[str] = []
    asks = [("light", 1)] * 40 + [("heavy", 3)] * 40
    work = asyncio.create_task(_serve(queue, asks, served))
    await asyncio.sleep(0.02)
    assert queue.waiting == len(asks)
    queue.leave()
    await work
    assert 28 <= served[:40].count("heavy") <= 32


async def test_wait_ends_with_the_deadline() -> None:
    """Who waited too long is refused with a Retry-After, and takes no place later."""
    queue = FairQueue("b", lambda: 1, 0.02)
    await queue.enter("a", 1)
    with pytest.raises(BackendOverloadedError, match=r"no place within 0\.02 s") as refused:
        await queue.enter("b", 1)
    assert refused.value.retry_after_s == 1.0
    queue.leave()
    assert (queue.running, queue.waiting) == (0, 0)
    await queue.enter("b", 1)


async def test_client_that_goes_away_leaves_its_place() -> None:
    """Cancelled while waiting, or in the very moment of its turn: no place is lost."""
    queue = FairQueue("b", lambda: 1, 5.0)
    await queue.enter("a", 1)
    waits = asyncio.create_task(queue.enter("b", 1))
    await asyncio.sleep(0)
    queue.leave()  # its turn
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert queue.running == 0
    await queue.enter("c", 1)
    gone = asyncio.create_task(queue.enter("d", 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    queue.leave()
    assert queue.running == 0


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(1, 4),
    asks=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.booleans()), max_size=40),
)
def test_limit_holds_and_everybody_who_stays_is_served(
    limit: int, asks: list[tuple[str, int, bool]]
) -> None:
    """Whoever comes and goes: never more than the limit run, and nobody is forgotten."""
    asyncio.run(_churn(limit, asks))


async def _churn(limit: int, asks: list[tuple[str, int, bool]]) -> None:
    queue = FairQueue("b", lambda: limit, 5.0)
    most = 0

    async def one(team: str, weight: int) -> None:
        nonlocal most
        await queue.enter(team, weight)
        most = max(most, queue.running)
        try:
            await asyncio.sleep(0)
        finally:
            queue.leave()

    tasks = [asyncio.create_task(one(team, weight)) for team, weight, _ in asks]
    await asyncio.sleep(0)
    for task, (_, _, leaves) in zip(tasks, asks, strict=True):
        if leaves:
            task.cancel()
            await asyncio.sleep(0)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= limit
    assert (queue.running, queue.waiting) == (0, 0)
    stayed = [result for result, ask in zip(done, asks, strict=True) if not ask[2]]
    assert stayed == [None] * len(stayed)


async def test_requests_that_nobody_waits_for_come_last_and_leave_places_free() -> None:
    """They take half of the places at most, none while others wait, and all come to their turn."""
    queue = FairQueue("b", lambda: 4, 5.0)
    behind = [asyncio.create_task(queue.enter_behind()) for _ in range(4)]
    await asyncio.sleep(0)
    assert (queue.running, queue.waiting) == (2, 2)
    await queue.enter("a", 1)
    await queue.enter("a", 1)
    waits = asyncio.create_task(queue.enter("a", 1))
    await asyncio.sleep(0)
    assert (queue.running, queue.waiting) == (4, 3)
    queue.leave()
    await waits
    assert (queue.running, queue.waiting) == (4, 2)
    queue.leave()
    queue.leave()
    await asyncio.sleep(0)
    assert [turn.done() for turn in behind] == [True, True, False, False]
    queue.leave()
    await asyncio.sleep(0)
    assert [turn.done() for turn in behind] == [True, True, True, False]
    behind[3].cancel()
    await asyncio.gather(*behind, return_exceptions=True)
    queue.leave()
    queue.leave()
    assert (queue.running, queue.waiting) == (0, 0)


async def test_a_single_place_is_not_kept_free() -> None:
    """Or a line of a batch would never be answered there."""
    queue = FairQueue("b", lambda: 1, 5.0)
    await queue.enter_behind()
    assert queue.running == 1
