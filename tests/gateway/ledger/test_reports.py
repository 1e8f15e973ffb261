"""Cost reports: sums that agree, groups that count once, machines measured apart."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.meter import MeterReading, SlotReading
from gateway.ledger.machine_costs import allocate
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.overruns import Overruns
from gateway.ledger.records import Settlement
from gateway.ledger.reports import ReportError, cost_rows, costs_report
from gateway.ledger.repository import Repository
from gateway.settings import MachineSettings, Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

NOON = datetime(2026, 11, 21, 13, tzinfo=UTC)
SETTINGS = Settings(
    machines=[
        MachineSettings(name="local", usd_per_hour=Decimal("3.60")),
        MachineSettings(name="big", type="h200", usd_per_hour=Decimal("36")),
    ]
)
SECOND = 10**9
NOW_NS = round(NOW * 10**6) * 1000
FIGURES = ("requests", "prompt_tokens", "cost_usd", "errors")


async def _report(engine: AsyncEngine, rows: Sequence[Settlement] = (), **asked: Any) -> Any:
    if rows:
        await Repository(engine).write(rows)
    return await costs_report(engine, SETTINGS, **{"now": NOON, **asked})


def _cut(found: Any, *figures: str) -> list[tuple[Any, ...]]:
    wanted = (*found["group_by"], *figures)
    return [tuple(row[name] for name in wanted) for row in found["rows"]]


def _mixed() -> list[Settlement]:
    """A plain answer, a retry on two backends, an exact hit, a denial, an error."""
    return [
        settlement("plain"),
        settlement(
            "retried",
            team="ads",
            tags={"env": "test"},
            charges=(
                charge("retried", kind="retry", cost_nano_usd=300, prompt_tokens=50),
                charge(
                    "retried",
                    1,
                    backend="outside",
                    machine=None,
                    machine_type=None,
                    cost_nano_usd=2_000,
                ),
            ),
        ),
        settlement("hit", charges=(), cache="exact", saved_nano_usd=700, user=None),
        settlement("denied", charges=(), outcome="denied", backend=None, prompt_tokens=0),
        settlement(
            "broken",
            outcome="error",
            team="ads",
            charges=(charge("broken", cost_nano_usd=-400, kind="reversal"),),
        ),
    ]


async def test_answers_count_once_whoever_worked_for_them(engine: AsyncEngine) -> None:
    """Under who answered: encoders and rungs that lost have costs, and no request of their own."""
    cascaded = (
        charge("climbed", kind="encoder", backend="minilm", cost_nano_usd=5),
        charge("climbed", 1, kind="rung", backend="nano", cost_nano_usd=7),
        charge("climbed", 2, cost_nano_usd=11),
    )
    near = (charge("near", kind="encoder", backend="minilm", cost_nano_usd=5),)
    rows = [
        *_mixed(),
        settlement("climbed", charges=cascaded),
        settlement("near", charges=near, cache="semantic"),
    ]
    await Repository(engine).write(rows)
    for group_by in ("backend", "backend,tag:env"):  # by the roll-ups, by the rows
        found = await cost_rows(engine, group_by=group_by, now=NOON, wanted={"answers", "costs"})
        by_backend: dict[str | None, int] = {}
        for row in found:
            name = row["backend"]
            by_backend[name] = by_backend.get(name, 0) + row["requests"]
        assert by_backend == {"small": 6, None: 1, "minilm": 0, "nano": 0, "outside": 0}, group_by
        costs = {row["backend"]: row["cost_usd"] for row in found if row["requests"] == 0}
        assert (costs["minilm"], costs["nano"]) == ("0.00000001", "0.000000007")


async def test_a_hit_that_cost_a_look_counts_as_a_request_of_who_answered(
    engine: AsyncEngine,
) -> None:
    """So that no row has more hits than requests; the encoder's row counts its work."""
    near = (charge("near", kind="encoder", backend="minilm", cost_nano_usd=5),)
    rows = [
        settlement("near", charges=near, cache="semantic"),
        settlement("hit", charges=(), cache="exact"),
    ]
    for group_by in ("backend", "backend,user", "backend,user,tag:env,hour"):  # sums, and rows
        found = await _report(engine, rows, group_by=group_by)
        rows = []
        of = {row["backend"]: row for row in found["rows"]}
        small, minilm = of["small"], of["minilm"]
        assert (small["requests"], minilm["requests"]) == (2, 1), group_by
        assert small["cache_hits_exact"] + small["cache_hits_semantic"] == 2
        assert found["totals"]["requests"] == 2
    for both, requests_ in ((["small", "minilm"], 2), (["minilm", "nobody"], 1), (["small"], 2)):
        found = await _report(engine, group_by="backend", filters={"backend": both})
        assert found["totals"]["requests"] == requests_, both


async def test_report_has_the_promised_shape(engine: AsyncEngine) -> None:
    """An empty ledger gives one row of zeros, strings for money, and every field."""
    found = await _report(engine)
    assert set(found) == {
        "since",
        "until",
        "tz",
        "group_by",
        "rows",
        "totals",
        "machine_cost_usd",
        "idle_cost_usd",
        "idle_breakdown",
        "unattributed_cost_usd",
        "machines",
        "savings",
    }
    assert found["totals"] == {
        "requests": 0,
        "prompt_tokens": 0,
        "cached_prompt_tokens": 0,
        "completion_tokens": 0,
        "cost_usd": "0",
        "idle_share_usd": "0",
        "full_cost_usd": "0",
        "saved_usd": "0",
        "usd_per_million_tokens": None,
        "full_usd_per_million_tokens": None,
        "cache_hits_exact": 0,
        "cache_hits_semantic": 0,
        "errors": 0,
    }
    assert found["rows"] == [found["totals"]]
    assert (found["since"], found["until"], found["tz"]) == (None, "2026-11-21T13:00:00Z", "UTC")


async def test_totals_count_everything_once(engine: AsyncEngine) -> None:
    """Hits, errors, savings, tokens and charges of all kinds."""
    totals = (await _report(engine, _mixed()))["totals"]
    assert totals["requests"] == 5
    assert totals["prompt_tokens"] == 400
    assert totals["completion_tokens"] == 100
    assert totals["cost_usd"] == "0.0000029"
    assert totals["saved_usd"] == "0.0000007"
    assert (totals["cache_hits_exact"], totals["errors"]) == (1, 1)
    assert totals["usd_per_million_tokens"] == "0.005800"


async def test_requests_count_once_in_each_group_they_have_a_charge_in(
    engine: AsyncEngine,
) -> None:
    """By backend the retried request stands in both; a hit under who answered; nothing twice."""
    found = await _report(engine, _mixed(), group_by="backend")
    assert _cut(found, "requests", "cost_usd", "cache_hits_exact", "prompt_tokens") == [
        ("outside", 1, "0.000002", 0, 100),
        ("small", 4, "0.0000009", 1, 350),
        (None, 1, "0", 0, 0),
    ]
    by_kind = await _report(engine, group_by=["kind", "machine"])
    assert sorted(_cut(by_kind, "requests"), key=str) == [
        ("answer", "local", 1),
        ("answer", None, 1),
        ("retry", "local", 1),
        ("reversal", "local", 1),
        (None, None, 2),
    ]


@pytest.mark.parametrize(
    "group_by",
    [
        "team",
        "key,user",
        "model,policy,rule,task",
        "backend",
        "machine,machine_type",
        "kind,team",
        "day",
        "hour,team",
        "tag:env",
        "tag:env,backend,hour",
    ],
)
async def test_groups_sum_to_the_totals(engine: AsyncEngine, group_by: str) -> None:
    """Whatever the keys, costs, savings and hits of the rows sum to the totals'."""
    found = await _report(engine, _mixed(), group_by=group_by)
    assert found["group_by"] == group_by.split(",")
    for figure in ("cost_usd", "saved_usd", "full_cost_usd"):
        parts = sum(Decimal(row[figure]) for row in found["rows"])
        assert parts == Decimal(found["totals"][figure]), figure
    hits = sum(row["cache_hits_exact"] for row in found["rows"])
    assert hits == found["totals"]["cache_hits_exact"]
    keys = [tuple(row[key] for key in found["group_by"]) for row in found["rows"]]
    assert len(keys) == len(set(keys))


async def test_tags_group_by_their_value(engine: AsyncEngine) -> None:
    """A tag that a request lacks is None; names may hold dots, dashes and any letter."""
    rows = [*_mixed(), settlement("odd", tags={"ünï-c.d e'": "ja"})]
    found = await _report(engine, rows, group_by="tag:env")
    assert sorted(_cut(found, "requests"), key=str) == [("prod", 4), ("test", 1), (None, 1)]
    odd = await _report(engine, group_by="tag:ünï-c.d e'")
    assert sorted(_cut(odd, "requests"), key=str) == [("ja", 1), (None, 5)]


async def test_names_are_data(engine: AsyncEngine) -> None:
    """SQL in a team's name is a team's name."""
    hostile = "'; DELETE FROM charges; --"
    found = await _report(engine, [settlement("r1", team=hostile)], group_by="team")
    assert _cut(found, *FIGURES) == [(hostile, 1, 100, "0.000001", 0)]
    assert (await _report(engine, filters={"team": [hostile]}))["totals"]["requests"] == 1
    assert (await _report(engine))["totals"]["cost_usd"] == "0.000001"


async def test_period_is_half_open_and_local(engine: AsyncEngine) -> None:
    """since is inclusive, until exclusive; dates, days and hours are those of the time zone."""
    midnight = datetime(2026, 11, 20, 23, tzinfo=UTC).timestamp()  # 00:00 on the 21st in Berlin
    rows = [
        settlement(name, started_at=at, charges=(charge(name, at=at, cost_nano_usd=10**9),))
        for name, at in (("before", midnight - 0.001), ("at", midnight), ("after", midnight + 1800))
    ]
    berlin: dict[str, Any] = {"tz": "Europe/Berlin", "group_by": "day"}
    found = await _report(engine, rows, **berlin)
    assert _cut(found, "requests", "cost_usd") == [("2026-11-20", 1, "1"), ("2026-11-21", 2, "2")]
    found = await _report(engine, since="2026-11-21", **berlin)
    assert _cut(found, "requests", "cost_usd") == [("2026-11-21", 2, "2")]
    assert found["since"] == "2026-11-21T00:00:00+01:00"
    found = await _report(engine, until="2026-11-20T23:00:00Z")
    assert found["totals"]["requests"] == 1
    hours = await _report(engine, tz="Asia/Kolkata", group_by="hour")
    assert _cut(hours, "requests") == [
        ("2026-11-21T04:00:00+05:30", 2),
        ("2026-11-21T05:00:00+05:30", 1),
    ]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"group_by": "nonsense"}, "allowed: team"),
        ({"group_by": "team,team"}, "once"),
        ({"group_by": 'tag:a"b'}, "quotes"),
        ({"group_by": "tag:"}, "1 to 64"),
        ({"since": "2026-02-30"}, "2026-02-30"),
        ({"until": "yesterday"}, "yesterday"),
        ({"since": "0001-01-01"}, "out of range"),
        ({"since": "2026-11-21T10:00", "until": "2026-11-21T10:00"}, "not before"),
        ({"tz": "Mars/Olympus"}, "Mars/Olympus"),
        ({"tz": "../../etc/passwd"}, "time zone"),
        ({"filters": {"day": ["2026-11-21"]}}, "since and until"),
        ({"filters": {"colour": ["red"]}}, "colour"),
    ],
)
async def test_bad_questions_are_refused(
    engine: AsyncEngine, asked: dict[str, Any], named: str
) -> None:
    """Unknown keys, impossible dates and zones: an error that names what is wrong."""
    with pytest.raises(ReportError, match=named):
        await _report(engine, **asked)


async def test_filters_narrow_rows_and_totals(engine: AsyncEngine) -> None:
    """Only the named teams, by any key; the machines' figures stay those of everybody."""
    await Repository(engine).write(_mixed())
    await MachineClock(engine).record("local", "small", "run", 0, SECOND)
    found = await _report(engine, group_by="backend", filters={"team": ["ads"]})
    assert found["totals"]["requests"] == 2
    assert found["totals"]["cost_usd"] == "0.0000019"
    assert found["machine_cost_usd"] == "0.001"
    both = await _report(engine, filters={"backend": ["outside", "nobody"]})
    assert both["totals"]["requests"] == 1
    assert both["totals"]["cost_usd"] == "0.000002"


async def test_machine_costs_what_it_did_cost_whatever_the_configuration_says_now(
    engine: AsyncEngine,
) -> None:
    """A price that changed, a machine that is configured no more: their past is not rewritten."""
    half_us = NOW_NS // 1000 - 50_000_000
    clock = MachineClock(engine)
    cheap, dear = (
        MachineSettings(name="local", usd_per_hour=Decimal(price)) for price in ("3.6", "7.2")
    )
    gone = MachineSettings(name="gone", type="l4", usd_per_hour=Decimal(36))
    await clock.record_prices([cheap, gone], half_us - 10**9)
    await clock.record_prices([cheap], half_us - 10**8)
    await clock.record_prices([dear], half_us)
    for machine in ("local", "gone"):
        await clock.record(machine, "small", "run", NOW_NS - 100 * SECOND, NOW_NS)
    found = await _report(engine)
    assert {m["machine"]: m["cost_usd"] for m in found["machines"]} == {
        "local": "0.15",
        "gone": "1",
    }


async def test_machine_costs_are_measured_and_the_difference_is_printed(
    engine: AsyncEngine,
) -> None:
    """Run time × price; idle, start-up, loading and lost work by the meter; the rest by charges."""
    began = NOW_NS - 100 * SECOND
    clock = MachineClock(engine)
    await clock.record_run("local", "small", began, began + 40 * SECOND)
    for now_s, working, idle in ((20, 5, 10), (40, 15, 20)):
        slot = SlotReading(
            startup_ns=2 * SECOND,
            loading_ns=3 * SECOND,
            working_ns=working * SECOND,
            lost_ns=SECOND,
        )
        reading = MeterReading(idle_ns=idle * SECOND, slots={"small": slot})
        await clock.record_meter("local", reading, began + now_s * SECOND)
    await clock.record_run("local", "small", began, began + 50 * SECOND)
    charges = tuple(charge("r", seq, cost_nano_usd=7 * 10**6) for seq in range(2))
    rows = [settlement("r", charges=charges), settlement("q", charges=(), team="ads")]
    found = await _report(engine, rows, group_by="team")
    assert found["machine_cost_usd"] == "0.05"
    assert found["idle_breakdown"] == {
        "idle": "0.02",
        "startup": "0.002",
        "loading": "0.003",
        "lost_work": "0.001",
        "overrun": "0",
    }
    assert found["idle_cost_usd"] == "0.026"
    assert found["unattributed_cost_usd"] == "0.01"
    assert _cut(found, "cost_usd", "idle_share_usd", "full_cost_usd") == [
        ("search", "0.014", "0.026", "0.04"),
        ("ads", "0", "0", "0"),
    ]
    half = await _report(engine, until=datetime.fromtimestamp(NOW - 75, UTC).isoformat())
    assert half["machine_cost_usd"] == "0.025"


async def test_charges_before_the_first_measurement_are_beside_nothing(
    engine: AsyncEngine,
) -> None:
    """Right after the start machine time is on its way yet; later it counts up to its last row."""
    began, at = NOW_NS, datetime.fromtimestamp
    rows = [settlement("r", charges=(charge("r", at=NOW + 1, cost_nano_usd=10**6),))]
    soon = await _report(engine, rows, now=at(NOW + 2, UTC))
    assert soon["totals"]["cost_usd"] == "0.001"
    assert (soon["machine_cost_usd"], soon["unattributed_cost_usd"]) == ("0", "0")
    await MachineClock(engine).record("local", "small", "run", began, began + 3 * SECOND)
    young = charge("s", at=NOW + 5, cost_nano_usd=10**6)
    await Repository(engine).write([settlement("s", charges=(young,))])
    later = await _report(engine, now=at(NOW + 6, UTC))
    assert later["totals"]["cost_usd"] == "0.002"
    assert (later["machine_cost_usd"], later["unattributed_cost_usd"]) == ("0.003", "0.002")
    silent = await _report(engine, now=at(NOW + 600, UTC))
    assert silent["unattributed_cost_usd"] == "0.001", "nobody measured: that is no delay any more"


async def test_overrun_has_its_own_line_and_is_in_no_sum(engine: AsyncEngine) -> None:
    """What requests cost beyond what was held, of the report's days; charges hold it already."""
    overruns = Overruns(engine)
    overruns.note("k1", 5, NOW)
    overruns.note("k2", 7, NOW - 3 * 86_400)
    await overruns.write()
    found = await _report(engine, since="2026-11-21")
    assert found["idle_breakdown"]["overrun"] == "0.000000005"
    assert found["idle_cost_usd"] == "0"


async def test_dropped_clock_reading_shows_as_unattributed(engine: AsyncEngine) -> None:
    """Idle that no engine reported is not invented from the rest."""
    began = NOW_NS - 100 * SECOND
    await MachineClock(engine).record_run("local", "small", began, began + 10 * SECOND)
    found = await _report(engine)
    assert found["idle_cost_usd"] == "0"
    assert found["unattributed_cost_usd"] == "0.01"


async def test_idle_is_shared_by_charges_on_the_same_machine(engine: AsyncEngine) -> None:
    """To the last nano-dollar; a machine's idle never lands on who used another."""
    began = NOW_NS - 100 * SECOND
    clock = MachineClock(engine)
    for machine in ("local", "big"):
        await clock.record(machine, machine, "run", began, began + 10 * SECOND)
        await clock.record(machine, machine, "idle", began, began + 10 * SECOND, SECOND)
    rows = [
        settlement(
            team,
            team=team,
            charges=(charge(team, machine=machine, machine_type=None, cost_nano_usd=cost),),
        )
        for team, machine, cost in (("a", "local", 1), ("b", "local", 2), ("c", "big", 5))
    ]
    found = await _report(engine, rows, group_by="team")
    shares = {row["team"]: Decimal(row["idle_share_usd"]) for row in found["rows"]}
    assert shares["c"] == Decimal("0.01")
    assert shares["a"] + shares["b"] == Decimal("0.001")
    assert shares["b"] > shares["a"] > 0
    assert found["totals"]["idle_share_usd"] == found["idle_cost_usd"] == "0.011"
    only_a = await _report(engine, group_by="team", filters={"team": ["a"]})
    assert Decimal(only_a["rows"][0]["idle_share_usd"]) == shares["a"]


@pytest.mark.parametrize(
    ("idle_by", "shares"),
    [
        ("charges", ("0.0025", "0.0075")),
        ("tokens", ("0.008", "0.002")),
        ("requests", ("0.0075", "0.0025")),
        ("groups", ("0.005", "0.005")),
    ],
)
async def test_idle_is_shared_by_the_chosen_key(
    engine: AsyncEngine, idle_by: str, shares: tuple[str, str]
) -> None:
    """Marginal and full cost stand side by side; the key only moves what nobody caused."""
    began = NOW_NS - 100 * SECOND
    await MachineClock(engine).record("local", "", "idle", began, began + 10 * SECOND)
    rows = [
        settlement(
            f"{team}{index}",
            team=team,
            charges=(
                charge(
                    f"{team}{index}",
                    cost_nano_usd=cost,
                    prompt_tokens=tokens - 10,
                    completion_tokens=10,
                ),
            ),
        )
        for team, count, cost, tokens in (("a", 3, 1000, 80), ("b", 1, 9000, 60))
        for index in range(count)
    ]
    found = await _report(engine, rows, group_by="team", idle_by=idle_by)
    by_team = {row["team"]: row for row in found["rows"]}
    assert tuple(by_team[team]["idle_share_usd"] for team in "ab") == shares
    assert by_team["a"]["cost_usd"] == "0.000003"
    full = Decimal(by_team["a"]["full_usd_per_million_tokens"])
    assert full > Decimal(by_team["a"]["usd_per_million_tokens"]) == Decimal("0.008333")


async def test_avoided_is_not_saved(engine: AsyncEngine) -> None:
    """What hits avoided is net of what finding them took; machines that ran anyway save nothing."""
    began = NOW_NS - 3600 * SECOND
    await MachineClock(engine).record("local", "a", "run", began, NOW_NS)
    rows = [
        settlement(
            "hit",
            cache="semantic",
            saved_nano_usd=1_000,
            charges=(charge("hit", kind="encoder", cost_nano_usd=100),),
        ),
        settlement(
            "outside",
            charges=(charge("outside", machine=None, machine_type=None, cost_nano_usd=5 * 10**9),),
        ),
    ]
    found = (await _report(engine, rows))["savings"]
    assert found["avoided_usd"] == "0.000001"
    assert found["spent_on_saving_usd"] == {"encoder": "0.0000001"}
    assert found["net_avoided_usd"] == "0.0000009"
    assert (found["outside_cost_usd"], found["really_saved_usd"]) == ("5", None)


async def test_savings_stand_against_a_price_and_the_largest(engine: AsyncEngine) -> None:
    """The same tokens elsewhere, with idle hours here; the same tokens at the dearest backend."""
    at_base = charge(
        "r1", backend="base", prompt_tokens=600, completion_tokens=400, cost_nano_usd=2_000_000
    )
    tokens: dict[str, Any] = {"prompt_tokens": 600, "completion_tokens": 400}
    rows = [
        settlement("r1", charges=(at_base,), **tokens),
        settlement("r2", cache="exact", charges=(), saved_nano_usd=1_000, **tokens),
    ]
    found = (await _report(engine, rows, against="1/10"))["savings"]
    price, largest = found["against_price"], found["against_largest"]
    assert (price["would_cost_usd"], price["cost_usd"]) == ("0.0092", "0.002")
    assert price["saved_usd"] == "0.0072"
    assert "$1 in, $10 out per 1M tokens" in price["assumption"]
    assert (largest["name"], largest["would_cost_usd"], largest["saved_usd"]) == (
        "base", "0.004", "0.002",
    )  # fmt: skip
    assert "at the $2.0000 per 1M tokens" in largest["assumption"]
    listed = (await _report(engine, [], against="gpt-4o"))["savings"]["against_price"]
    assert listed["would_cost_usd"] == "0.011"
    for wrong in ("nobody", "1/x", "-1/2", "1/2/3/4"):
        with pytest.raises(ReportError, match="IN/OUT"):
            await _report(engine, [], against=wrong)


async def test_idle_share_of_the_whole_is_the_idle_cost(engine: AsyncEngine) -> None:
    """A report without groups counts it once, whatever its zone."""
    began = NOW_NS - 3600 * 10**9
    clock = MachineClock(engine)
    await clock.record("local", "a", "run", began, NOW_NS)
    await clock.record("local", "", "idle", began, NOW_NS, 1800 * 10**9)
    rows = [settlement("r", charges=(charge("r", cost_nano_usd=10**6),))]
    for asked in ({}, {"tz": "Asia/Kolkata"}, {"group_by": "team"}):
        found = await _report(engine, rows, **asked)
        rows = []
        assert found["totals"]["idle_share_usd"] == found["idle_cost_usd"] == "1.8"


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), max_size=20))
def test_allocation_is_exact(amount: int, weights: list[int]) -> None:
    """Shares sum to the amount, follow the weights, and are off by less than one."""
    shares = allocate(amount, weights)
    whole = sum(weights)
    assert sum(shares) == (amount if whole else 0)
    for share, weight in zip(shares, weights, strict=True):
        assert whole == 0 or abs(share * whole - amount * weight) < whole
