"""What work costs: exact decimals, nothing invented, money never in a float."""

import ast
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gateway.ledger
from backends.contract import EngineUsage, Usage
from gateway.ledger.money import MAX_NANO_USD, parse_usd, to_nano, to_usd, usd_text
from gateway.ledger.pricing import CostEstimator, machine_cost, price_usage, rates_at, reverse
from gateway.ledger.records import ChargeRecord
from gateway.settings import BackendSettings, Settings
from gateway.settings.prices import DatedRates, MachineSettings, PriceSettings

ENGINE = BackendSettings(name="small", model="bundled:small", machine="box")
FOREIGN = BackendSettings(
    name="vllm", kind="openai", model="m", machine="box", base_urls=["http://x/v1"]
)
OUTSIDE = BackendSettings(
    name="outside",
    kind="openai",
    model="m",
    base_urls=["http://x/v1"],
    price=PriceSettings(
        input_usd_per_mtok=Decimal("0.15"),
        cached_input_usd_per_mtok=Decimal("0.075"),
        output_usd_per_mtok=Decimal("0.60"),
    ),
)
ECHO = BackendSettings(name="echo", kind="echo", model="echo")
SETTINGS = Settings(
    machines=[MachineSettings(name="box", type="h200", usd_per_hour=Decimal("3.60"))],
    backends=[ENGINE, FOREIGN, OUTSIDE, ECHO],
)


def _price(
    backend: BackendSettings, usage: Usage | None, elapsed_s: float = 2.0, in_flight: int = 4
) -> ChargeRecord:
    return price_usage(
        SETTINGS,
        backend,
        usage,
        elapsed_s=elapsed_s,
        in_flight=in_flight,
        at=1.0,
        request_id="r",
        seq=0,
    )


def test_engine_s_measured_nanoseconds_cost_the_machine_s_price() -> None:
    """Prefill and decode are charged, lost work is not; $3.60 an hour is 1 nano-dollar per µs."""
    engine = EngineUsage(
        prefill_ns=1340, decode_ns=2000, speculation_ns=300, recompute_ns=40, abandoned_ns=5
    )
    charge = _price(ENGINE, Usage(prompt_tokens=7, completion_tokens=3, headgate=engine))
    assert charge.machine_ns == 3340
    assert charge.cost_nano_usd == 3340 // 1000
    assert charge.unit_prices == {"usd_per_hour": "3.60"}
    assert (charge.machine, charge.machine_type) == ("box", "h200")
    assert (charge.prompt_tokens, charge.completion_tokens) == (7, 3)


def test_unmeasured_work_on_our_machine_costs_its_share_of_the_time() -> None:
    """2 s among 4 requests in flight are half a second of the machine, also without any usage."""
    assert _price(FOREIGN, None).machine_ns == 500_000_000
    charge = _price(FOREIGN, Usage(prompt_tokens=1))
    assert charge.cost_nano_usd == 500_000
    assert _price(FOREIGN, None, elapsed_s=-1.0, in_flight=0).machine_ns == 0


def test_work_that_died_with_our_engine_is_the_machine_s_loss() -> None:
    """Its meter counts it as lost; a guess beside that would count it twice."""
    charge = _price(ENGINE, Usage(prompt_tokens=7, completion_tokens=3))
    assert (charge.machine_ns, charge.cost_nano_usd, charge.completion_tokens) == (0, 0, 3)


def test_priced_tokens_cost_their_price() -> None:
    """Cached input at its own price, never more cached than there were."""
    charge = _price(OUTSIDE, Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=100))
    assert charge.cost_nano_usd == 600 * 150 + 400 * 75 + 100 * 600
    assert charge.machine is None
    assert charge.machine_ns == 0
    assert Decimal(charge.unit_prices["cached_input_usd_per_mtok"]) == Decimal("0.075")
    odd = _price(OUTSIDE, Usage(prompt_tokens=10, cached_tokens=400))
    assert odd.cost_nano_usd == 10 * 75
    assert _price(OUTSIDE, None).cost_nano_usd == 0


def test_echo_is_free_unless_priced() -> None:
    """Echo backends book their tokens, and money only at a price of their own."""
    usage = Usage(prompt_tokens=10, completion_tokens=10)
    free = _price(ECHO, usage)
    assert (free.cost_nano_usd, free.machine, free.prompt_tokens) == (0, None, 10)
    priced = BackendSettings(
        name="e", kind="echo", model="e", price=PriceSettings(output_usd_per_mtok=Decimal(1000))
    )
    assert usd_text(_price(priced, usage).cost_nano_usd) == "0.01"


def test_reversal_takes_back_everything() -> None:
    """A charge and its reversal sum to nothing, in every column that is summed."""
    engine = EngineUsage(prefill_ns=1000, decode_ns=2000)
    charge = _price(ENGINE, Usage(prompt_tokens=7, completion_tokens=3, headgate=engine))
    back = reverse(charge, seq=1, at=2.0)
    assert (back.kind, back.seq, back.reverses_seq) == ("reversal", 1, 0)
    for name in ("prompt_tokens", "completion_tokens", "machine_ns", "cost_nano_usd", "decode_ns"):
        assert getattr(charge, name) + getattr(back, name) == 0


def test_halves_round_to_even() -> None:
    """Rounding favours nobody."""
    assert [machine_cost(ns, Decimal("3.60")) for ns in (500, 1500, 2500, 2501)] == [0, 2, 2, 3]


@given(st.integers(-MAX_NANO_USD, MAX_NANO_USD))
def test_amounts_survive_text_and_decimals(nano_usd: int) -> None:
    """Nano-dollars → text → nano-dollars, and through Decimal, are the identity."""
    assert parse_usd(usd_text(nano_usd)) == nano_usd
    assert to_nano(to_usd(nano_usd)) == nano_usd
    assert "E" not in usd_text(nano_usd)


@given(st.integers(0, 10**18), st.integers(1, 10**6))
def test_parts_of_a_machine_s_time_cost_the_whole(ns: int, cents: int) -> None:
    """Splitting a time in two changes its cost by at most one rounding."""
    price = Decimal(cents) / 100
    parts = machine_cost(ns // 3, price) + machine_cost(ns - ns // 3, price)
    assert abs(parts - machine_cost(ns, price)) <= 1


@pytest.mark.parametrize("text", ["", "x", "1,5", "$5", "NaN", "Infinity", "1e20"])
def test_amounts_that_are_none_are_refused(text: str) -> None:
    """Words, commas, infinities and more than a BIGINT holds."""
    with pytest.raises(ValueError):
        parse_usd(text)


def test_estimates_learn_from_charges() -> None:
    """Before the first charge a slow guess, then what was seen; priced tokens are known exactly."""
    estimator = CostEstimator(SETTINGS)
    first = estimator.estimate("small", 100, 100)
    usage = Usage(
        prompt_tokens=100,
        completion_tokens=100,
        headgate=EngineUsage(prefill_ns=100_000, decode_ns=1_000_000),
    )
    estimator.observe(_price(ENGINE, usage))
    assert estimator.expected("small", 100, 100) == 1_100
    assert estimator.estimate("small", 100, 100) == 2_200 < first
    assert estimator.expected("small", 100, 200) == 2_100
    assert estimator.estimate("outside", 1000, 100) == 1000 * 150 + 100 * 600
    assert estimator.estimate("echo", 1000, 1000) == 0
    assert estimator.estimate("nobody", 1, 1) == 0


def test_reservations_follow_the_dearest_charge_seen_lately() -> None:
    """One request that cost five times the usual raises the ceiling at once, for a while."""
    estimator = CostEstimator(SETTINGS)

    def observe(decode_ns: int) -> None:
        engine = EngineUsage(prefill_ns=0, decode_ns=decode_ns)
        usage = Usage(prompt_tokens=1, cached_tokens=1, completion_tokens=100, headgate=engine)
        estimator.observe(_price(ENGINE, usage))

    for _ in range(100):
        observe(1_000_000)
    usual = estimator.estimate("small", 0, 100)
    observe(5_000_000)
    assert estimator.estimate("small", 0, 100) >= 5_000 * 5 // 4
    for _ in range(300):
        observe(1_000_000)
    assert estimator.estimate("small", 0, 100) <= usual * 11 // 10


_MONEY = ("usd", "nano", "cost", "price", "spent", "limit", "overrun", "held", "saved")


def test_money_never_touches_a_float() -> None:
    """In the ledger nothing that names money is annotated float, divided by /, or made a float."""
    offences: list[str] = []
    for path in sorted(Path(gateway.ledger.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if _mixes_money_and_float(node):
                offences.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")  # type: ignore[attr-defined]
    assert offences == []


def _mixes_money_and_float(node: ast.AST) -> bool:
    if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
        name = ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else node.arg
        return _names_money(name) and "float" in ast.unparse(node.annotation)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
        return any(
            _names_money(ast.unparse(a)) and "Fraction" not in ast.unparse(a) for a in node.args
        )
    if isinstance(node, ast.BinOp):
        sides = (ast.unparse(node.left), ast.unparse(node.right))
        money = any(map(_names_money, sides))
        fraction = any(
            isinstance(part, ast.Constant) and isinstance(part.value, float)
            for part in ast.walk(node)
        )
        return money and (isinstance(node.op, ast.Div) or fraction)
    return False


def _names_money(source: str) -> bool:
    return any(word in source.lower() for word in _MONEY)


def test_float_check_finds_what_it_is_for() -> None:
    """The check above would see the usual mistakes."""
    for mistake in (
        "cost_usd: float = 0",
        "float(cost_nano_usd)",
        "spent_nano_usd / 1e9",
        "price * 1.5",
        "def f(limit_usd: float): ...",
    ):
        assert any(_mixes_money_and_float(node) for node in ast.walk(ast.parse(mistake))), mistake
    for fine in ("cost_nano_usd // 2", "float(Fraction(taken, limit_nano_usd))", "ns / 1e9"):
        assert not any(_mixes_money_and_float(node) for node in ast.walk(ast.parse(fine))), fine


def test_thought_and_batched_tokens_have_rates_of_their_own() -> None:
    """Reasoning is part of the output, at its rate; a batch has its rates, or the usual ones."""
    price = PriceSettings(
        input_usd_per_mtok=Decimal(2),
        output_usd_per_mtok=Decimal(8),
        reasoning_usd_per_mtok=Decimal(4),
        batch_input_usd_per_mtok=Decimal(1),
        batch_output_usd_per_mtok=Decimal("3.5"),
    )
    backend = msgspec.structs.replace(OUTSIDE, price=price)
    usage = Usage(prompt_tokens=100, completion_tokens=50, reasoning_tokens=20)
    asked: dict[str, Any] = {"elapsed_s": 1.0, "in_flight": 1, "at": 1.0, "request_id": "r"}
    charge = price_usage(SETTINGS, backend, usage, seq=0, **asked)
    assert charge.cost_nano_usd == 100 * 2000 + 30 * 8000 + 20 * 4000
    assert charge.unit_prices["reasoning_usd_per_mtok"] == "4"
    batched = price_usage(SETTINGS, backend, usage, seq=0, batch=True, **asked)
    assert batched.cost_nano_usd == 100 * 1000 + 30 * 3500 + 20 * 4000


def test_token_prices_are_those_of_the_day() -> None:
    """The rates that held when the work was done, whenever that is booked."""
    history = [
        DatedRates(since=datetime(2026, month, 1, tzinfo=UTC), input_usd_per_mtok=Decimal(month))
        for month in (3, 6)
    ]
    price = PriceSettings(input_usd_per_mtok=Decimal(1), history=history)
    for month, expected in ((2, 1), (3, 3), (5, 3), (6, 6), (12, 6)):
        at = datetime(2026, month, 1, tzinfo=UTC).timestamp()
        assert rates_at(price, at).input_usd_per_mtok == expected
