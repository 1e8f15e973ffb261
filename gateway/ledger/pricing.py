"""From what a request used to what it cost: the only place where money is computed.

A machine paid by the hour: machine_ns × price of the hour ÷ 3600e9. Our engine measures machine_ns
step by step (`usage.headgate`: prefill and decode; rejected drafts, recomputed prompts and what was
decoded for a client that had left are lost work, a cost of the machine's). Where our engine never
said what a request used, it died with it: its machine's meter counts that as lost. Of a foreign
server on a machine of ours nothing is measured: the machine's time is shared among the requests in
flight there (see `foreign_time`); where nobody followed them, a request counts its wall time ÷ the
requests in flight when it was settled.
A backend with prices of its own: tokens × price, cached, reasoning and batched tokens at their own
rates, all as of that day. Echo costs nothing unless it has a price.
Whatever was used is booked, also by requests that failed or were cancelled.
"""

import time
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache

from backends.contract import EngineUsage, Usage
from gateway.ledger.machine_prices import usd_per_hour
from gateway.ledger.money import EXACT, MAX_NANO_USD, NANO
from gateway.ledger.records import ChargeKind, ChargeRecord
from gateway.settings import BackendSettings, Settings
from gateway.settings.prices import PriceSettings, TokenRates

_NS_PER_HOUR = 3_600_000_000_000
_MTOK = 1_000_000
_NO_USAGE = Usage()
_NO_ENGINE_USAGE = EngineUsage()


def price_usage(
    settings: Settings,
    backend: BackendSettings,
    usage: Usage | None,
    *,
    elapsed_s: float,
    in_flight: int,
    machine_ns: int | None = None,
    kind: ChargeKind = "answer",
    batch: bool = False,
    at: float,
    request_id: str,
    seq: int,
) -> ChargeRecord:
    """Book one piece of work.

    Args:
        usage: as the backend counted; None: it never said.
        elapsed_s: wall time of the call, for servers that measure nothing themselves.
        in_flight: requests under way at the backend, this one included.
        machine_ns: its share of a foreign server's machine, if that was followed.
        batch: it was a line of a batch, at the upstream's rates for those.
        at: unix seconds.
    """
    used = usage or _NO_USAGE
    engine = used.headgate or _NO_ENGINE_USAGE
    machine = settings.machine(backend)
    worked_ns = 0
    if backend.price is not None and machine is None:
        rates = rates_at(backend.price, at)
        rates = _batched(rates) if batch else rates
        unit_prices = _token_prices(rates)
        cost = token_cost(rates, used)
    elif machine is None or backend.kind == "echo":
        machine, unit_prices, cost = None, {}, 0
    else:
        ours = used.headgate is not None or backend.kind in ("engine", "encoder")
        if ours:
            worked_ns = engine.billable_ns
        else:
            worked_ns = _share(elapsed_s, in_flight) if machine_ns is None else machine_ns
        price = usd_per_hour(machine, at)
        unit_prices = {"usd_per_hour": _plain(price)}
        cost = machine_cost(worked_ns, price)
    return ChargeRecord(
        request_id=request_id,
        seq=seq,
        kind=kind,
        backend=backend.name,
        machine=machine.name if machine else None,
        machine_type=machine.type if machine else None,
        at=at,
        prompt_tokens=used.prompt_tokens,
        cached_prompt_tokens=used.cached_tokens,
        completion_tokens=used.completion_tokens,
        prefill_ns=engine.prefill_ns,
        decode_ns=engine.decode_ns,
        speculation_ns=engine.speculation_ns,
        recompute_ns=engine.recompute_ns,
        machine_ns=worked_ns,
        unit_prices=unit_prices,
        cost_nano_usd=cost,
    )


def reverse(charge: ChargeRecord, *, seq: int, at: float) -> ChargeRecord:
    """The charge that takes `charge` back: the same work, negative."""
    return ChargeRecord(
        request_id=charge.request_id,
        seq=seq,
        kind="reversal",
        backend=charge.backend,
        machine=charge.machine,
        machine_type=charge.machine_type,
        at=at,
        prompt_tokens=-charge.prompt_tokens,
        cached_prompt_tokens=-charge.cached_prompt_tokens,
        completion_tokens=-charge.completion_tokens,
        prefill_ns=-charge.prefill_ns,
        decode_ns=-charge.decode_ns,
        speculation_ns=-charge.speculation_ns,
        recompute_ns=-charge.recompute_ns,
        machine_ns=-charge.machine_ns,
        unit_prices=charge.unit_prices,
        cost_nano_usd=-charge.cost_nano_usd,
        reverses_seq=charge.seq,
    )


def machine_cost(machine_ns: int, usd_per_hour: Decimal) -> int:
    """Nano-dollars for `machine_ns` nanoseconds of a machine, rounded half to even."""
    numerator, denominator = _ratio(usd_per_hour)
    return _half_even(machine_ns * numerator * NANO, denominator * _NS_PER_HOUR)


def rates_at(price: PriceSettings, at: float) -> TokenRates:
    """What tokens cost at `at`, Unix seconds."""
    found: TokenRates = price
    for dated in price.history:
        if dated.since.timestamp() > at:
            break
        found = dated
    return found


def _batched(rates: TokenRates) -> TokenRates:
    """What a batch's tokens cost: its rates in place of the usual ones."""
    return TokenRates(
        input_usd_per_mtok=_or(rates.batch_input_usd_per_mtok, rates.input_usd_per_mtok),
        cached_input_usd_per_mtok=rates.cached_input_usd_per_mtok,
        output_usd_per_mtok=_or(rates.batch_output_usd_per_mtok, rates.output_usd_per_mtok),
        reasoning_usd_per_mtok=rates.reasoning_usd_per_mtok,
    )


def token_cost(rates: TokenRates, used: Usage) -> int:
    """Nano-dollars for these tokens, rounded once, half to even."""
    input_, output = rates.input_usd_per_mtok, rates.output_usd_per_mtok
    cached = min(used.cached_tokens, used.prompt_tokens)
    thought = min(used.reasoning_tokens, used.completion_tokens)
    total, common = 0, 1
    for tokens, usd in (
        (used.prompt_tokens - cached, input_),
        (cached, _or(rates.cached_input_usd_per_mtok, input_)),
        (used.completion_tokens - thought, output),
        (thought, _or(rates.reasoning_usd_per_mtok, output)),
    ):
        if tokens:
            numerator, denominator = _ratio(usd)
            total = total * denominator + tokens * numerator * common
            common *= denominator
    return _half_even(total * NANO, common * _MTOK)


def _or(rate: Decimal | None, other: Decimal) -> Decimal:
    return other if rate is None else rate


@lru_cache(maxsize=1024)
def _ratio(usd: Decimal) -> tuple[int, int]:
    """A price as numerator and denominator: integers are exact and cost a tenth of Decimal."""
    return usd.as_integer_ratio()


def _half_even(numerator: int, denominator: int) -> int:
    """The quotient, rounded half to even. Raises ValueError if a BIGINT cannot hold it."""
    nano, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and nano % 2):
        nano += 1
    if abs(nano) > MAX_NANO_USD:
        raise ValueError(f"{nano} nano-dollars are more than the ledger can hold")
    return nano


def _token_prices(rates: TokenRates) -> dict[str, str]:
    given = ((name, getattr(rates, name)) for name in TokenRates.__struct_fields__)
    return {name: _plain(rate) for name, rate in given if rate is not None}


def _plain(usd: Decimal) -> str:
    return format(usd, "f")


def _share(elapsed_s: float, in_flight: int) -> int:
    """Wall time ÷ requests in flight, nanoseconds."""
    elapsed_ns = Decimal(round(max(elapsed_s, 0.0) * 1e9))
    share = EXACT.divide(elapsed_ns, Decimal(max(in_flight, 1)))
    return int(share.to_integral_value(ROUND_HALF_EVEN))


class CostEstimator:
    """What requests will cost, before they run: for reservations, caps and `saved`.

    Tokens × price is known. For machines paid by the hour the time per token is learned from the
    charges seen so far (a moving average by backend, in picoseconds, so integers suffice); until
    the first, slow guesses stand in. `estimate` takes a ceiling, as a reservation should rarely be
    too small: twice the learned rate, or a quarter above the dearest seen lately, if that is more.
    """

    _FIRST_PREFILL_PS = 2_000_000_000
    _FIRST_DECODE_PS = 20_000_000_000

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix seconds; prices may change with time."""
        self._settings = settings
        self._clock = clock
        self._backends = {backend.name: backend for backend in settings.backends}
        self._ps_per_token: dict[str, tuple[int, int]] = {}
        self._ceilings_ps: dict[str, tuple[int, int]] = {}
        """The dearest lately: a charge raises it at once, each later one lowers it by 1 ÷ 64."""

    def observe(self, charge: ChargeRecord) -> None:
        """Learn from a charge with measured machine time."""
        fresh = charge.prompt_tokens - charge.cached_prompt_tokens
        if charge.machine_ns <= 0 or charge.completion_tokens + fresh <= 0:
            return
        old = self._ps_per_token.get(charge.backend)
        prefill_ns, decode_ns = charge.prefill_ns, charge.machine_ns - charge.prefill_ns
        if prefill_ns == 0:  # not told apart: a decoded token counts as eight prompt tokens
            unit = charge.machine_ns // max(fresh + 8 * charge.completion_tokens, 1)
            prefill_ns, decode_ns = unit * fresh, 8 * unit * charge.completion_tokens
        was = old or (self._FIRST_PREFILL_PS, self._FIRST_DECODE_PS)
        weight = 8 if old else 1
        now = [
            was[i] + (ns * 1000 // tokens - was[i]) // weight if tokens > 0 else was[i]
            for i, (ns, tokens) in enumerate(
                ((prefill_ns, fresh), (decode_ns, charge.completion_tokens))
            )
        ]
        self._ps_per_token[charge.backend] = (now[0], now[1])
        highest = self._ceilings_ps.get(charge.backend, (0, 0))
        prefill = max(prefill_ns * 1000 // fresh if fresh > 0 else 0, highest[0] - highest[0] // 64)
        tokens = charge.completion_tokens
        decode = max(decode_ns * 1000 // tokens if tokens > 0 else 0, highest[1] - highest[1] // 64)
        self._ceilings_ps[charge.backend] = (prefill, decode)

    def expected(
        self, backend: str, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0
    ) -> int:
        """The likely marginal cost of an answer, nano-dollars.

        Args:
            cached_tokens: of the prompt's, those that the backend will probably find cached.
        """
        found = self._backends.get(backend)
        machine = self._settings.machine(found) if found else None
        if found is None or (found.kind == "echo" and machine is not None):
            return 0
        if machine is None:
            assert found.price is not None
            tokens = Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cached_tokens=cached_tokens,
            )
            return token_cost(rates_at(found.price, self._clock()), tokens)
        rates = self._ps_per_token.get(backend)
        prefill, decode = rates or (self._FIRST_PREFILL_PS, self._FIRST_DECODE_PS)
        fresh = prompt_tokens - cached_tokens
        machine_ns = (fresh * prefill + completion_tokens * decode) // 1000
        return machine_cost(machine_ns, usd_per_hour(machine, self._clock()))

    def estimate(self, backend: str, prompt_tokens: int, max_tokens: int) -> int:
        """What to reserve for an answer of at most `max_tokens`, nano-dollars."""
        found = self._backends.get(backend)
        expected = self.expected(backend, prompt_tokens, max_tokens)
        machine = self._settings.machine(found) if found is not None else None
        if machine is None:
            return expected
        prefill, decode = self._ceilings_ps.get(backend, (0, 0))
        ceiling_ns = (prompt_tokens * prefill + max_tokens * decode) * 5 // 4000
        dearest = machine_cost(ceiling_ns, usd_per_hour(machine, self._clock()))
        return max(2 * expected, dearest if expected else 0)
