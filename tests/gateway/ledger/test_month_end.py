"""Corrections, double entry, closed months and invoices: every line stays, every sum agrees."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check
from gateway.ledger.accounts import balances, entries
from gateway.ledger.audit import list_acts
from gateway.ledger.corrections import UnknownCharge, correct
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.money import parse_usd
from gateway.ledger.month_end import bill, bounds, close, reconcile_invoice
from gateway.ledger.report_query import ReportError, ReportQuery
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.settings import MachineSettings, Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

SETTINGS = Settings(machines=[MachineSettings(name="local", usd_per_hour=Decimal("3.60"))])
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
USD = 10**9


async def _month_of_work(engine: AsyncEngine) -> None:
    """Two teams, a machine that ran for 100 s and idled for 40, an upstream."""
    upstream: dict[str, Any] = {"backend": "outside", "machine": None, "machine_type": None}
    await Repository(engine).write(
        [
            settlement("a", team="ads", charges=(charge("a", cost_nano_usd=USD // 100),)),
            settlement("b", charges=(charge("b", cost_nano_usd=USD // 50),)),
            settlement("c", charges=(charge("c", cost_nano_usd=7 * USD, **upstream),)),
        ]
    )
    began, clock = round(NOW * 1e6) * 1000, MachineClock(engine)
    await clock.record("local", "small", "run", began, began + 100 * USD)
    await clock.aclose()


async def _costs(engine: AsyncEngine, **asked: Any) -> Any:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    return await costs_report(engine, SETTINGS, now=now, **asked)


async def test_correction_reverses_and_names_what_it_corrects(engine: AsyncEngine) -> None:
    """The wrong charge stays; a negative one and the right one follow, and all sums agree."""
    await Repository(engine, chained=True).write([settlement("r1"), settlement("r2")])
    booked = await correct(engine, "r1", 0, cost_nano_usd=250, now=NOW + 60, chained=True)
    assert [(c.kind, c.cost_nano_usd, c.reverses_seq) for c in booked] == [
        ("reversal", -1_000, 0),
        ("answer", 250, 0),
    ]
    assert (await _costs(engine))["totals"]["cost_usd"] == "0.00000125"
    with pytest.raises(ValueError, match="reversed already"):
        await correct(engine, "r1", 0, now=NOW + 61, chained=True)
    with pytest.raises(ValueError, match="is a reversal"):
        await correct(engine, "r1", booked[0].seq, now=NOW, chained=True)
    with pytest.raises(ValueError, match="0 or more"):
        await correct(engine, "r2", 0, cost_nano_usd=-1, now=NOW, chained=True)
    with pytest.raises(UnknownCharge, match="it has 0"):
        await correct(engine, "r2", 5, now=NOW, chained=True)
    with pytest.raises(UnknownCharge, match="no request"):
        await correct(engine, "r9'; --", 0, now=NOW, chained=True)
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []
        assert await check.row_problems(connection) == []
        assert (await check.check_chain(connection)).problem is None


async def test_correction_never_precedes_what_it_corrects(engine: AsyncEngine) -> None:
    """A clock that went backwards by a day books the reversal beside the charge, not before."""
    await Repository(engine).write([settlement("r1")])
    (reversal,) = await correct(engine, "r1", 0, now=NOW - 86_400, chained=False)
    assert reversal.at == NOW


async def test_accounts_are_zero_together(engine: AsyncEngine) -> None:
    """Whoever owes, somebody is owed: over all accounts, and over both sides of each charge."""
    await _month_of_work(engine)
    await correct(engine, "b", 0, now=NOW + 60, chained=False)
    query = ReportQuery(until=datetime(2027, 1, 1, tzinfo=UTC))
    async with engine.connect() as connection:
        found = await balances(connection, query)
        sides = [one async for one in entries(connection, since_us=0, until_us=2**62)]
    assert {line.account: line.balance_nano_usd for line in found} == {
        "team:ads/key:key_1": USD // 100,
        "team:search/key:key_1": 7 * USD,
        "machine:local": -USD // 100,
        "upstream:outside": -7 * USD,
    }
    assert len(sides) == 8
    assert sum(one.debit_nano_usd - one.credit_nano_usd for one in sides) == 0
    assert [one.reverses_seq for one in sides][-2:] == [0, 0]


async def test_closed_month_never_changes(engine: AsyncEngine) -> None:
    """Late charges and corrections post to December and name November's; its bill stays."""
    await _month_of_work(engine)
    with pytest.raises(ReportError, match="not over"):
        await close(engine, SETTINGS, "2026-11", now=DECEMBER - 1)
    before = await close(engine, SETTINGS, "2026-11", now=DECEMBER)
    november = {"since": "2026-11-01", "until": "2026-12-01", "group_by": "team,kind"}
    frozen = (await _costs(engine, **november))["totals"]["cost_usd"]
    with pytest.raises(ReportError, match="closed already"):
        await close(engine, SETTINGS, "2026-11", now=DECEMBER)

    await Repository(engine).write([settlement("late")])  # replayed after a long outage
    (reversal,) = await correct(engine, "a", 0, now=NOW + 60, chained=False)
    assert reversal.at == DECEMBER
    assert reversal.reverses_seq == 0
    assert (await _costs(engine, **november))["totals"]["cost_usd"] == frozen
    assert await bill(engine, SETTINGS, "2026-11") == before
    december = await bill(engine, SETTINGS, "2026-12")
    assert {line.name: line.nano_usd for line in december.lines if line.kind == "team"} == {
        "ads": -USD // 100,
        "search": 1_000,
    }
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []


async def test_closing_keeps_the_bills_of_months_before(engine: AsyncEngine) -> None:
    """Nobody closed September and October: with November they are frozen, as they stood."""
    await _month_of_work(engine)
    september = datetime(2026, 9, 20, tzinfo=UTC).timestamp()
    old = charge("old", at=september, machine=None, machine_type=None, cost_nano_usd=3 * USD)
    await Repository(engine).write([settlement("old", started_at=september, charges=(old,))])
    stood = await bill(engine, SETTINGS, "2026-09")
    await close(engine, SETTINGS, "2026-11", now=DECEMBER)

    found = await bill(engine, Settings(), "2026-09")
    assert (found.lines, found.closed_at) == (stood.lines, DECEMBER)
    assert (await bill(engine, SETTINGS, "2026-10")).lines == ()
    told = await reconcile_invoice(
        engine, Settings(), "2026-09", invoice_nano_usd=4 * USD, now=DECEMBER
    )
    assert (told["difference_usd"], told["posted_to"]) == ("1", "2026-12")
    assert await bill(engine, SETTINGS, "2026-09") == found


async def test_bill_with_discount_and_difference_is_the_invoice(engine: AsyncEngine) -> None:
    """Team bills + idle + categories + posted lines = what the invoice says; twice posts once."""
    await _month_of_work(engine)
    assert (await bill(engine, SETTINGS, "2026-11")).total_nano_usd == 7 * USD + USD // 10
    asked: dict[str, Any] = {
        "invoice_nano_usd": parse_usd("6.95"),
        "discount_nano_usd": parse_usd("0.20"),
        "note": "no. 17",
        "now": DECEMBER,
    }
    found = await reconcile_invoice(engine, SETTINGS, "2026-11", **asked)
    assert (found["expected_usd"], found["difference_usd"], found["posted"]) == ("7.1", "0.05", 2)
    assert (await reconcile_invoice(engine, SETTINGS, "2026-11", **asked))["posted"] == 0
    whole = await bill(engine, SETTINGS, "2026-11")
    assert whole.total_nano_usd == parse_usd("6.95")
    kinds = {line.kind: line.nano_usd for line in whole.lines}
    assert (kinds["discount"], kinds["difference"]) == (-USD // 5, USD // 20)

    await close(engine, SETTINGS, "2026-11", now=DECEMBER)
    asked["invoice_nano_usd"] = parse_usd("6.90")
    late = await reconcile_invoice(engine, SETTINGS, "2026-11", **asked)
    assert (late["posted_to"], late["posted"]) == ("2026-12", 1)
    (line,) = (await bill(engine, SETTINGS, "2026-12")).lines
    assert (line.kind, line.nano_usd, line.note) == (
        "difference",
        -USD // 20,
        "corrects 2026-11. no. 17",
    )
    assert (await bill(engine, SETTINGS, "2026-11")).total_nano_usd == parse_usd("6.95")


async def test_who_changed_the_books_is_written_down(engine: AsyncEngine) -> None:
    """Corrections, closings and invoices leave a row each in the audit log; refusals none."""
    await _month_of_work(engine)
    await correct(engine, "a", 0, cost_nano_usd=5, now=NOW, chained=False, by="cli:ann")
    with pytest.raises(UnknownCharge):
        await correct(engine, "a", 7, now=NOW, chained=False, by="cli:ann")
    asked: dict[str, Any] = {"invoice_nano_usd": 5 * USD, "now": DECEMBER, "by": "cli:bob"}
    for _ in range(2):  # the second posts nothing
        await reconcile_invoice(engine, SETTINGS, "2026-11", **asked)
    await close(engine, SETTINGS, "2026-11", now=DECEMBER, by="cli:bob")
    async with engine.connect() as connection:
        acts = await list_acts(connection)
    assert [(act.actor, act.action, act.target) for act in reversed(acts)] == [
        ("cli:ann", "charges.correct", "a"),
        ("cli:bob", "invoices.reconcile", "2026-11"),
        ("cli:bob", "months.close", "2026-11"),
    ]
    assert acts[-1].details == {"seq": 0, "cost_usd": "0.000000005"}
    assert acts[0].details == {"total_usd": "5"}


async def test_invoice_of_one_upstream_counts_its_charges_only(engine: AsyncEngine) -> None:
    """Machines and other backends do not matter for it; other payees are refused."""
    await _month_of_work(engine)
    asked: dict[str, Any] = {"invoice_nano_usd": 7 * USD, "now": DECEMBER}
    found = await reconcile_invoice(engine, SETTINGS, "2026-11", payee="upstream:outside", **asked)
    assert (found["expected_usd"], found["posted"]) == ("7", 0)
    with pytest.raises(ReportError, match="payee"):
        await reconcile_invoice(engine, SETTINGS, "2026-11", payee="nobody", **asked)
    with pytest.raises(ReportError, match="discount"):
        await reconcile_invoice(engine, SETTINGS, "2026-11", discount_nano_usd=-1, **asked)
    with pytest.raises(ReportError, match="invoice \\$-1"):
        await reconcile_invoice(engine, SETTINGS, "2026-11", **asked | {"invoice_nano_usd": -USD})


async def test_whole_invoice_holds_beside_those_of_upstreams(engine: AsyncEngine) -> None:
    """What an upstream's invoice has posted is not posted once more: the bill is the invoice."""
    await _month_of_work(engine)
    for usd, payee in ((8, "upstream:outside"), (9, "all"), (9, "all")):
        asked: dict[str, Any] = {"invoice_nano_usd": usd * USD, "payee": payee, "now": DECEMBER}
        await reconcile_invoice(engine, SETTINGS, "2026-11", **asked)
    found = await bill(engine, SETTINGS, "2026-11")
    assert found.total_nano_usd == 9 * USD
    posted = [(line.name, line.nano_usd) for line in found.lines if line.kind == "difference"]
    assert [name for name, _ in posted] == ["upstream:outside", "all"]
    assert posted[0][1] == USD


async def test_upstream_that_nobody_knows_is_refused(engine: AsyncEngine) -> None:
    """A misspelt name posts no line, as lines stay for ever."""
    await _month_of_work(engine)
    asked: dict[str, Any] = {"invoice_nano_usd": USD, "now": DECEMBER}
    with pytest.raises(ReportError, match="'upstream:outsid': no such backend"):
        await reconcile_invoice(engine, SETTINGS, "2026-11", payee="upstream:outsid", **asked)


@pytest.mark.parametrize("month", ["2026-13", "2026-00", "26-11", "2026-11-01", "", "9999-01", "x"])
def test_impossible_months_are_refused(month: str) -> None:
    """The error says how a month is written."""
    with pytest.raises(ReportError, match="YYYY-MM"):
        bounds(month)
