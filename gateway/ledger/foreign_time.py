"""The time of machines behind other people's engines, shared among the requests that used it.

vLLM, SGLang, TGI or llama.cpp on a machine paid by the hour measure nothing for us. So the time
during which requests of ours are in flight on such a machine is collected, and each request that
ends is charged its work out of it: what `foreign_work` says that its prompt and answer take at that
server, times the machine's time per such work lately. Where that is more or less than has been
collected for what was done, the difference is paid off over the next requests, not by the one that
happens to end last. So no time is charged twice, none is left out for long, and a request's
neighbours decide little of its price. What no request came to pay is lost work.

The machine's meter (`backends.meter`) divides its time among gateway processes, by how many
requests each has there, and measures when none has any: that is its idle time.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from msgspec import Struct, field

from backends.contract import Chunk, Usage
from backends.fitting import LinearFit
from backends.meter import MeterSlot
from backends.server_metrics import ServerMetrics
from gateway.ledger.foreign_work import Seen, Weights
from gateway.settings import BackendSettings, Settings

_MOST_UNKNOWN_TOKENS: Final = 256
_EARLY: Final = 10
"""Requests, until which each is charged what was collected, by its part of the work."""
_FORGET: Final = 0.98
"""Of a machine's time and work, with each request."""
_PAY_OFF: Final = 10
"""Over about so many requests' work a difference is paid."""
_SILENT_NS: Final = 60 * 10**9
"""After so long without a request what is left is lost."""
_METRICS_EVERY: Final = 5
"""Seconds."""


class Watched(Protocol):
    """What is seen of a request on its way; the gateway's Exchange."""

    tokens_seen: int
    first_token_at: float | None
    """Of the performance counter, seconds."""


class Unwatched(Struct):
    """Of a request of which nothing is seen until it ends."""

    tokens_seen: int = 0
    first_token_at: float | None = None


class _Flight(Struct, eq=False):
    """One request at a foreign server."""

    server: "_Server"
    watched: Watched
    prompt_tokens: int
    """As the gateway estimates them."""
    began_ns: int
    parts_ns: float
    """What the machine's integral of 1 / (requests in flight) stood at when it began."""
    marks: list[tuple[int, int]] = field(default_factory=list)
    """When how many pieces of its answer had come."""


class _Machine(Struct, eq=False):
    """A machine, who is on it, and its time that nobody was charged yet."""

    slot: MeterSlot | None
    at_ns: int = 0
    parts_ns: float = 0.0
    """Integral of 1 / (requests in flight) over time."""
    owed_ns: int = 0
    """Collected and not charged; below zero: charged in advance."""
    collected_ns: float = 0.0
    """Lately, until the last request ended; likewise their work."""
    worked_ns: float = 0.0
    since_ns: int = 0
    """Collected since the last request ended."""
    left_ns: int = 0
    """When the last request came or went."""
    usual_ns: float = 0.0
    """A request's work, on average."""
    ended: int = 0
    """Requests."""
    flights: dict[int, _Flight] = {}

    def collect(self, now_ns: int) -> None:
        """Take the time since the last event."""
        passed_ns, self.at_ns = now_ns - self.at_ns, now_ns
        if not self.flights:
            return
        self.parts_ns += passed_ns / self._beside()
        ns = passed_ns if self.slot is None else self.slot.take(ends=False)
        self.owed_ns += ns
        self.since_ns += ns

    def _beside(self) -> int:
        """How many are served at once; those that the server has in its queue are not."""
        metrics = next(iter(self.flights.values())).server.metrics
        if metrics is None or metrics.running is None:
            return len(self.flights)
        return max(1, min(len(self.flights), round(metrics.running)))

    def beside(self, flight: _Flight, now_ns: int) -> float:
        """How many were in flight while this one was, itself included, on average."""
        part_ns = self.parts_ns - flight.parts_ns
        return max((now_ns - flight.began_ns) / part_ns, 1.0) if part_ns > 0 else 1.0

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
        if self.ended <= _EARLY or self.worked_ns <= 0:
            return max(self.owed_ns, 0) * work_ns / max(work_ns + others_ns, 1.0)
        rate = self.collected_ns / self.worked_ns
        known_ns = work_ns + others_ns
        beyond_ns = self.owed_ns - rate * known_ns
        payers_ns = known_ns + _PAY_OFF * self.usual_ns
        return rate * work_ns + beyond_ns * work_ns / max(payers_ns, 1.0)

    def charged(self, ns: int) -> None:
        """So much was."""
        self.owed_ns -= ns
        if self.slot is not None:
            self.slot.report(ns)

    def lose(self, ns: int) -> None:
        """So much will never be."""
        self.owed_ns -= ns
        if self.slot is not None:
            self.slot.lose(ns)


class _Server(Struct, eq=False):
    """One backend: what its work takes, and the machine it is on."""

    machine: _Machine
    weights: Weights = field(default_factory=Weights)
    prompts: LinearFit = field(default_factory=lambda: LinearFit((10.0, 1.0)))
    """Tokens of a prompt as the server counts them: per request, and per token of ours."""
    metrics: ServerMetrics | None = None

    def prompt(self, estimate: int) -> float:
        """What the server will probably count."""
        if not self.prompts.fitted:
            return float(estimate)
        per_request, per_token = self.prompts.coefficients()
        return per_request + per_token * estimate


class ForeignTime:
    """Shares the time of every hourly machine that hosts a foreign server. One per process."""

    def __init__(
        self,
        settings: Settings,
        slots: "dict[str, MeterSlot] | None" = None,
        *,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Args:
        slots: by machine, this process's place at its meter.
        now_ns: the clock of `Watched.first_token_at`.
        """
        machines: dict[str, _Machine] = {}
        self._now_ns = now_ns
        self._servers: dict[str, _Server] = {}
        self._machines: list[_Machine] = []
        for backend in settings.backends:
            name = foreign_machine(settings, backend)
            if name is not None:
                slot = (slots or {}).get(name)
                machine = machines.setdefault(name, _Machine(slot=slot, flights={}))
                self._servers[backend.name] = _Server(machine)
        self._machines = list(machines.values())

    @property
    def backends(self) -> list[str]:
        """The foreign servers whose machine's time is shared."""
        return list(self._servers)

    def flight(
        self, watched: Watched, backend: str, prompt_tokens: int
    ) -> contextlib.AbstractContextManager[None]:
        """A request is at a backend while inside; `end` it there to know its share.

        Left without that, what it used is lost.
        """
        server = self._servers.get(backend)
        return _NOTHING if server is None else self._inside(server, watched, prompt_tokens)

    @contextlib.contextmanager
    def _inside(self, server: _Server, watched: Watched, prompt_tokens: int) -> Iterator[None]:
        machine, now_ns = server.machine, self._now_ns()
        machine.collect(now_ns)
        flight = _Flight(server, watched, prompt_tokens, now_ns, machine.parts_ns)
        machine.flights[id(watched)] = flight
        machine.changed()
        try:
            yield
        finally:
            self._leave(machine, watched)

    def timed(
        self, watched: Watched, backend: str, chunks: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[Chunk, None]:
        """The stream itself; where its server's times say what work takes, looked at on its way."""
        return chunks if backend not in self._servers else self._looked_at(watched, backend, chunks)

    async def _looked_at(
        self, watched: Watched, backend: str, chunks: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[Chunk, None]:
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                at_ns = self._now_ns()
                yield chunk
                self.look(watched, backend, at_ns)

    def look(self, watched: Watched, backend: str, at_ns: int) -> None:
        """Note how far a stream had come by then."""
        flight = self._servers[backend].machine.flights.get(id(watched))
        if flight is None:
            return
        before = flight.marks[-1][1] if flight.marks else 0
        if watched.tokens_seen > before:
            flight.marks.append((at_ns, watched.tokens_seen))

    def end(self, watched: Watched, backend: str, usage: Usage | None) -> int | None:
        """The request's share of the machine's time, nanoseconds; None where that is not ours
        to say. Call it once, inside `flight`."""
        server = self._servers.get(backend)
        if server is None:
            return None
        return 0 if usage is None else self._land(server.machine, watched, usage)

    def so_far(self, watched: Watched, backend: str) -> tuple[int, int] | None:
        """What a request in flight will be charged of the time until now, nanoseconds: its even
        part of it, if that is more; and how many are in flight. None: not ours to say."""
        server = self._servers.get(backend)
        flight = None if server is None else server.machine.flights.get(id(watched))
        if server is None or flight is None:
            return None
        machine, now_ns = server.machine, self._now_ns()
        beside = len(machine.flights)
        even_ns = machine.parts_ns - flight.parts_ns + (now_ns - machine.at_ns) / beside
        rate = machine.collected_ns / machine.worked_ns if machine.ended > _EARLY else 0.0
        return round(max(even_ns, rate * self._done(flight, now_ns))), beside

    def heard(self, backend: str, metrics: ServerMetrics) -> None:
        """What the server's /metrics said, now and then."""
        server = self._servers[backend]
        before, server.metrics = server.metrics, metrics
        if before is None:
            return
        for terms, seconds in metrics.since(before):
            server.weights.told(terms, seconds * 1e9)

    def tick(self) -> None:
        """A second is over: time to learn."""
        now_ns = self._now_ns()
        for server in self._servers.values():
            machine = server.machine
            machine.collect(now_ns)
            mine = [one.began_ns for one in machine.flights.values() if one.server is server]
            server.weights.learn(min(mine, default=math.inf))
        for machine in self._machines:
            silent = not machine.flights and now_ns - machine.left_ns > _SILENT_NS
            if silent and machine.owed_ns > 0:
                machine.lose(machine.owed_ns)

    @property
    def owed_ns(self) -> int:
        """Collected and not charged yet, of all machines."""
        return sum(machine.owed_ns for machine in self._machines)

    def _land(self, machine: _Machine, watched: Watched, usage: Usage) -> int:
        now_ns = self._now_ns()
        machine.collect(now_ns)
        flight = machine.flights.pop(id(watched), None)
        if flight is None:
            return 0
        machine.changed()
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        work_ns = flight.server.weights.work_ns(
            usage.prompt_tokens, fresh, usage.completion_tokens, machine.beside(flight, now_ns)
        )
        others_ns = self._others(machine, now_ns, machine.owed_ns - work_ns)
        price = machine.price(max(work_ns, 1.0), others_ns)
        charged_ns = round(min(max(price, 0.0), now_ns - flight.began_ns))
        machine.charged(charged_ns)
        flight.server.prompts.observe((1.0, flight.prompt_tokens), usage.prompt_tokens)
        weights, began_ns = flight.server.weights, flight.began_ns
        seen = Seen(
            began_ns=began_ns,
            ended_ns=now_ns,
            prompt_tokens=usage.prompt_tokens,
            fresh_tokens=fresh,
            answer_tokens=usage.completion_tokens,
            marks=flight.marks,
            first_ns=flight.marks[0][0]
            if flight.marks
            else weights.first_ns(fresh, began_ns, now_ns),
        )
        weights.ended(seen)
        return charged_ns

    def _leave(self, machine: _Machine, watched: Watched) -> None:
        """Of a request that nobody ended: its work brought nobody anything."""
        flight = machine.flights.get(id(watched))
        if flight is None:
            return
        now_ns = self._now_ns()
        machine.collect(now_ns)
        done_ns = self._done(flight, now_ns)
        del machine.flights[id(watched)]
        machine.changed()
        others_ns = self._others(machine, now_ns, machine.owed_ns - done_ns)
        part = done_ns / max(done_ns + others_ns, 1.0) if machine.flights else 1.0
        machine.lose(round(max(machine.owed_ns, 0) * part))

    def _others(self, machine: _Machine, now_ns: int, most_unseen_ns: float) -> float:
        """The work done for those in flight; what nobody saw of it is not more than there was time
        for."""
        seen = unseen = 0.0
        for flight in machine.flights.values():
            if flight.marks:
                seen += self._done(flight, now_ns)
            else:
                unseen += self._done(flight, now_ns)
        return seen + min(unseen, max(0.0, most_unseen_ns - seen))

    def _done(self, flight: _Flight, now_ns: int) -> float:
        """Estimated work of a request in flight, of what has probably been done of it."""
        server, prompt = flight.server, flight.server.prompt(flight.prompt_tokens)
        beside = server.machine.beside(flight, now_ns)
        if len(flight.marks) > 1 or flight.watched.tokens_seen > 1:
            answer = float(flight.watched.tokens_seen)
            return server.weights.work_ns(prompt, prompt, answer, beside)
        # Nothing is seen of it: as far as its time will have taken it.
        in_flight = len(server.machine.flights)
        answer = server.weights.answered(prompt, now_ns - flight.began_ns, in_flight)
        if answer < 1:
            return server.weights.work_ns(prompt, prompt * (answer + 1e-9), 0.0, beside)
        return server.weights.work_ns(prompt, prompt, min(answer, _MOST_UNKNOWN_TOKENS), beside)


class _Told(Protocol):
    """A backend that can be asked for its /metrics."""

    async def metrics_text(self) -> str: ...


async def listen(foreign: ForeignTime, backends: Mapping[str, Any]) -> None:
    """Share each second, and ask the foreign servers for their /metrics now and then; for ever."""
    asked: dict[str, _Told] = {
        name: backends[name] for name in foreign.backends if hasattr(backends[name], "metrics_text")
    }
    while foreign.backends:
        for name, backend in asked.items():
            found = ServerMetrics.parse(await backend.metrics_text())
            if found != ServerMetrics():
                foreign.heard(name, found)
        for _ in range(_METRICS_EVERY):
            await asyncio.sleep(1.0)
            foreign.tick()


def foreign_machine(settings: Settings, backend: BackendSettings) -> str | None:
    """The hourly machine of somebody else's server; None for everything else."""
    machine = settings.machine(backend)
    return machine.name if backend.kind == "openai" and machine is not None else None


_NOTHING: Final = contextlib.nullcontext()
