"""Time is shared to the last nanosecond, and idle is measured."""

from hypothesis import given
from hypothesis import strategies as st

from backends.engine.accounting import Stopwatch
from backends.shares import share


@given(
    total=st.integers(0, 10**12), weights=st.lists(st.integers(1, 3000), min_size=1, max_size=70)
)
def test_share_sums_to_the_total_and_is_fair(total: int, weights: list[int]) -> None:
    """The shares sum exactly; none is off its true size by one or more; equal weights differ by
    at most one."""
    shares = share(total, weights)
    whole = sum(weights)
    assert sum(shares) == total
    for part, weight in zip(shares, weights, strict=True):
        assert abs(part * whole - total * weight) < whole
    if len(set(weights)) == 1:
        assert max(shares) - min(shares) <= 1


def test_stopwatch_measures_each_kind_by_itself() -> None:
    """Loading and idle come from their own stamps; while there is work all time is shared."""
    now = [100]
    watch = Stopwatch(lambda: now[0], started_ns=40)
    now[0] = 150
    watch.work_begins()
    now[0] = 165
    assert watch.take() == (15, 15)
    now[0] = 170
    assert watch.take(ends=True) == (5, 5)
    now[0] = 200
    read = watch.read()
    assert (read.loading_ns, read.idle_ns, read.busy_ns) == (60, 50 + 30, 20)
    assert read.since_start_ns == 160
    now[0] = 210
    assert watch.take(ends=True) == (0, 0)  # said twice: nothing changes
    assert watch.read().idle_ns == 90
