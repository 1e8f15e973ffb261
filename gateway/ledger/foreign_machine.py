"""A machine behind somebody else's engine: who is on it, and its time that nobody was charged yet.

Time is collected as it passes and charged as requests end. What a request's part of the steps is
depends on how many were decoding beside it; how many were in flight says less, since a long prompt
takes long and shares one step. So requests count from their first token on: a stream's was seen, of
others it is expected. Before the first request of a busy stretch is computed it travels, is read
and tokenised, while the engine waits: nobody's work, so that much is lost.
"""

from typing import Final, Protocol

from msgspec import Struct, field

from backends.client.server_metrics import ServerMetrics
from backends.fitting import LinearFit
from backends.meter import MeterSlot
from gateway.ledger.foreign_cache import PrefixCache
from gateway.ledger.foreign_work import Weights

_EARLY: Final = 10
"""Requests, until which each is charged what was collected, by its part of the work."""
_FORGET: Final = 0.98
"""Of a machine's time and work, with each request."""
_PAY_OFF: Final = 10
"""Over about so many requests' work a difference is paid."""


class Watched(Protocol):
    """What is seen of a request on its way; the gateway's Exchange."""

    tokens_seen: int
    first_token_at: float | None
    """Of the performance counter, seconds."""


class Unwatched(Struct):
    """Of a request of which nothing is seen until it ends."""

    tokens_seen: int = 0
    first_token_at: float | None = None


class Server(Struct, eq=False):
    """One backend: what its work takes, and the machine it is on."""

    machine: "Machine"
    weights: Weights = field(default_factory=Weights)
    prompts: LinearFit = field(default_factory=lambda: LinearFit((10.0, 1.0)))
    """Tokens of a prompt as the server counts them: per request, and per token of ours."""
    metrics: ServerMetrics | None = None
    cache: PrefixCache = field(default_factory=PrefixCache)

    def first_after(self, prompt_tokens: int) -> int:
        """How long a prompt of so many tokens will probably take to be read, nanoseconds."""
        return self.weights.first_after(self.prompt(prompt_tokens))

    def prompt(self, estimate: int) -> float:
        """What the server will probably count."""
        if not self.prompts.fitted:
            return float(estimate)
        per_request, per_token = self.prompts.coefficients()
        return per_request + per_token * estimate


class Flight(Struct, eq=False):
    """One request at a foreign server."""

    server: Server
    watched: Watched
    prompt_tokens: int
    """As the gateway estimates them."""
    began_ns: int
    parts_ns: float
    """What the machine's integral of 1 / (requests in flight) stood at when it began."""
    expected_ns: int
    """When its prompt will probably have been read."""
    seen_share: float = 0.0
    """Of its prompt, what began an earlier one."""
    decodes_ns: int | None = None
    """Since when it decodes; None: its prompt has not been read."""
    decoding_ns: float = 0.0
    """What the machine's integral of 1 / (requests decoding) stood at then."""
    marks: list[tuple[int, int]] = field(default_factory=list)
    """When how many pieces of its answer had come."""


class Machine(Struct, eq=False):
    """See above. Nanoseconds throughout."""

    slot: MeterSlot | None
    at_ns: int = 0
    parts_ns: float = 0.0
    """Integral of 1 / (requests in flight) over time."""
    decoding_ns: float = 0.0
    """Integral of 1 / (requests decoding) over the time in which any does."""
    owed_ns: int = 0
    """Collected and not charged; below zero: charged in advance."""
    collected_ns: float = 0.0
    """Lately, until the last request ended; likewise their work."""
    worked_ns: float = 0.0
    since_ns: int = 0
    """Collected since the last request ended."""
    busy_since_ns: int | None = None
    """When a request came to an empty machine, until the first one there ends."""
    left_ns: int = 0
    """When the last request came or went."""
    usual_ns: float = 0.0
    """A request's work, on average."""
    ended: int = 0
    """Requests."""
    flights: dict[int, Flight] = {}

    def collect(self, now_ns: int) -> None:
        """Take the time since the last event."""
        was_ns, self.at_ns = self.at_ns, now_ns
        if not self.flights:
            return
        self.parts_ns += (now_ns - was_ns) / self._served(len(self.flights))
        self._count_decoding(was_ns, now_ns)
        ns = now_ns - was_ns if self.slot is None else self.slot.take(ends=False)
        self.owed_ns += ns
        self.since_ns += ns

    def _count_decoding(self, was_ns: int, now_ns: int) -> None:
        """Of a stretch in which only expected first tokens may have come."""
        decoding, waiting = 0, []
        for flight in self.flights.values():
            if flight.decodes_ns is not None:
                decoding += 1
            elif flight.expected_ns < now_ns:
                waiting.append(flight)
        for flight in sorted(waiting, key=lambda one: one.expected_ns):
            at_ns = max(flight.expected_ns, was_ns)
            if decoding:
                self.decoding_ns += (at_ns - was_ns) / self._served(decoding)
            flight.decodes_ns, flight.decoding_ns = at_ns, self.decoding_ns
            was_ns, decoding = at_ns, decoding + 1
        if decoding:
            self.decoding_ns += (now_ns - was_ns) / self._served(decoding)

    def _served(self, requests: int) -> int:
        """How many of so many are served at once; the others are in the server's queue."""
        metrics = next(iter(self.flights.values())).server.metrics
        if metrics is None or metrics.running is None:
            return requests
        return max(1, min(requests, round(metrics.running)))

    def seen(self, flight: Flight, at_ns: int) -> None:
        """The first piece of a stream has come."""
        self.collect(max(at_ns, self.at_ns))
        flight.decodes_ns, flight.decoding_ns = self.at_ns, self.decoding_ns

    def beside(self, flight: Flight, now_ns: int) -> float:
        """How many decoded while this one did, itself included, on average over its steps."""
        if flight.decodes_ns is None:
            return 1.0 + sum(one.decodes_ns is not None for one in self.flights.values())
        part_ns = self.decoding_ns - flight.decoding_ns
        return max((now_ns - flight.decodes_ns) / part_ns, 1.0) if part_ns > 0 else 1.0

    def changed(self) -> None:
        """A request has come or gone."""
        self.left_ns = self.at_ns
        if self.slot is None:
            return
        if self.flights:
            self.slot.begin(weight=len(self.flights))
        else:
            self.owed_ns += self.slot.take(ends=True)

    def price(self, work_ns: float, others_ns: float) -> float:
        """What a request that ends is charged.

        Args:
            others_ns: the work done for those still there.
        """
        self.collected_ns = self.collected_ns * _FORGET + self.since_ns
        self.worked_ns = self.worked_ns * _FORGET + work_ns
        self.usual_ns += (work_ns - self.usual_ns) / min(self.ended + 1, 20)
        self.since_ns, self.ended = 0, self.ended + 1
        rate, known_ns = self.rate, work_ns + others_ns
        if not rate:
            return max(self.owed_ns, 0) * work_ns / max(known_ns, 1.0)
        beyond_ns = self.owed_ns - rate * known_ns
        payers_ns = known_ns + _PAY_OFF * self.usual_ns
        return rate * work_ns + beyond_ns * work_ns / max(payers_ns, 1.0)

    @property
    def rate(self) -> float:
        """The machine's time per estimated work, lately; 0: too few requests have ended."""
        if self.ended <= _EARLY or self.worked_ns <= 0:
            return 0.0
        return self.collected_ns / self.worked_ns

    def charged(self, ns: int) -> None:
        """So much was."""
        self.owed_ns -= ns
        if self.slot is not None:
            self.slot.report(ns)

    def travelled(self, own_ns: float) -> None:
        """A request ends; the first of a stretch took so long before it was computed."""
        if self.busy_since_ns is None:
            return
        lost_ns = round(min(own_ns, (self.at_ns - self.busy_since_ns) / 2))
        self.busy_since_ns = None
        self.since_ns -= lost_ns
        self.lose(lost_ns)

    def lose(self, ns: int) -> None:
        """So much will never be."""
        self.owed_ns -= ns
        if self.slot is not None:
            self.slot.lose(ns)
