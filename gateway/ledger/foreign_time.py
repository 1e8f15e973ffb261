"""The time of machines behind other people's engines, shared among the requests that used it.

vLLM, SGLang, TGI or llama.cpp on a machine paid by the hour measure nothing for us. So the time
during which requests of ours are in flight on such a machine is shared among them as it passes: at
every event (a request comes or goes, a second is over) the time since the last one is divided by
the work that each has probably had done in it. Nothing is shared twice and nothing is left: over
every busy stretch the charges sum to the time that passed, to the nanosecond, whatever the
estimates are worth. They only say who pays how much of it.

Work is estimated as in `backends.engine.step_costs`, from outside: prompt tokens that were not
cached x prefill + answer tokens x (decode + fixed / requests beside it). The coefficients are
fitted per backend to what can be seen there: the time to the first token, the time of the others
with so many requests beside them, and the sums that the server's own /metrics adds up. Requests
that wait in the server's queue are in no step; where /metrics tells how many run, that counts.

The machine's meter (`backends.meter`) divides its time among gateway processes, by how many
requests each has there, and measures when none has any: that is its idle time.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from msgspec import Struct

from backends.contract import Usage
from backends.fitting import LinearFit
from backends.meter import MeterSlot
from backends.server_metrics import ServerMetrics
from backends.shares import share
from gateway.settings import BackendSettings, Settings

_PRIOR: Final = (8.0, 1.0, 8.0, 1.2)
"""Nanoseconds per: request, fresh prompt token, step that gave it a token, token in that step."""
_PS: Final = 1_000
_UNKNOWN_ANSWER_TOKENS: Final = 64
_WAITING: Final = 0.9
"""Of a first token that comes later than expected, the part that is put down to waiting."""
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
    began_ns: int
    beside_ns: int
    """What the machine's integral of (requests in flight) stood at when it began."""
    done: int = 0
    """Of its estimated work, picoseconds."""
    last: int = 0
    """What was left of it to do when it ended."""
    shared_ns: int = 0
    """The machine's time that fell to it so far."""


class _Machine(Struct, eq=False):
    """A machine, and who is on it."""

    slot: MeterSlot | None
    at_ns: int = 0
    over_ns: int = 0
    """Shared and given back: the next to be shared again."""
    beside_ns: int = 0
    """Integral of the number of requests in flight over time."""
    flights: dict[int, _Flight] = {}

    def collect(self, now_ns: int) -> int:
        """The time to be shared now: since the last event, and what was given back."""
        passed_ns, self.at_ns = now_ns - self.at_ns, now_ns
        if not self.flights:
            return 0
        self.beside_ns += passed_ns * self._beside()
        over_ns, self.over_ns = self.over_ns, 0
        return over_ns + (passed_ns if self.slot is None else self.slot.take(ends=False))

    def _beside(self) -> int:
        """How many are served at once; those that the server has in its queue are not."""
        metrics = next(iter(self.flights.values())).server.metrics
        if metrics is None or metrics.running is None:
            return len(self.flights)
        return max(1, min(len(self.flights), round(metrics.running)))

    def changed(self) -> None:
        """A request has come or gone."""
        if self.slot is not None and self.flights:
            self.slot.begin(weight=len(self.flights))

    def charged(self, ns: int) -> None:
        """A request has gone and is charged so much. What remains when none is left was for
        requests that cannot say what they used: lost work."""
        if self.slot is not None:
            self.slot.report(ns)
            if not self.flights:
                self.slot.lose(self.over_ns + self.slot.take(ends=True))
        if not self.flights:
            self.over_ns = 0
        self.changed()


class _Server(Struct, eq=False):
    """One backend: what is known of its speed, and the machine it is on."""

    machine: _Machine
    fit: LinearFit
    metrics: ServerMetrics | None = None


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
        for backend in settings.backends:
            name = foreign_machine(settings, backend)
            if name is not None:
                slot = (slots or {}).get(name)
                machine = machines.setdefault(name, _Machine(slot=slot, flights={}))
                self._servers[backend.name] = _Server(machine, LinearFit(_PRIOR))

    @property
    def backends(self) -> list[str]:
        """The foreign servers whose machine's time is shared."""
        return list(self._servers)

    def flight(
        self, watched: Watched, backend: str, prompt_tokens: int
    ) -> contextlib.AbstractContextManager[None]:
        """A request is at a backend while inside; `end` it there to know its share.

        Left without that, what was collected for it is the others'.
        """
        server = self._servers.get(backend)
        return _NOTHING if server is None else self._inside(server, watched, prompt_tokens)

    @contextlib.contextmanager
    def _inside(self, server: _Server, watched: Watched, prompt_tokens: int) -> Iterator[None]:
        machine, now_ns = server.machine, self._now_ns()
        self._share(machine, now_ns, machine.collect(now_ns))
        machine.flights[id(watched)] = _Flight(
            server, watched, prompt_tokens, now_ns, machine.beside_ns
        )
        machine.changed()
        try:
            yield
        finally:
            self._land(machine, watched, None)

    def end(self, watched: Watched, backend: str, usage: Usage | None) -> int | None:
        """The request's share of the machine's time, nanoseconds; None where that is not ours
        to say. Call it once, inside `flight`."""
        server = self._servers.get(backend)
        return None if server is None else self._land(server.machine, watched, usage)

    def so_far(self, watched: Watched, backend: str) -> tuple[int, int] | None:
        """What has been shared to a request in flight, nanoseconds, an even part of the time since
        the last event included; and how many are in flight. None where that is not ours to say."""
        server = self._servers.get(backend)
        flight = None if server is None else server.machine.flights.get(id(watched))
        if server is None or flight is None:
            return None
        beside = len(server.machine.flights)
        return flight.shared_ns + (self._now_ns() - server.machine.at_ns) // beside, beside

    def heard(self, backend: str, metrics: ServerMetrics) -> None:
        """What the server's /metrics said, now and then."""
        server = self._servers[backend]
        before, server.metrics = server.metrics, metrics
        if before is None:
            return
        for terms, seconds in metrics.since(before):
            server.fit.observe(terms, seconds * 1e9)

    def tick(self) -> None:
        """A second is over."""
        for machine in {id(s.machine): s.machine for s in self._servers.values()}.values():
            now_ns = self._now_ns()
            self._share(machine, now_ns, machine.collect(now_ns))

    def _share(
        self, machine: _Machine, now_ns: int, ns: int, landing: _Flight | None = None
    ) -> None:
        """Divide the time since the last event by the work done in it."""
        flights = list(machine.flights.values())
        if not flights:
            return
        steps = []
        for flight in flights:
            done = flight.done if flight is landing else self._so_far(flight, now_ns)
            steps.append(max(0, done - flight.done))
            flight.done = max(flight.done, done)
        if landing is not None:
            steps[flights.index(landing)] = landing.last
        if not any(steps):
            steps = [1] * len(flights)
        for flight, part in zip(flights, share(ns, steps), strict=True):
            flight.shared_ns += part

    def _land(self, machine: _Machine, watched: Watched, usage: Usage | None) -> int:
        flight = machine.flights.get(id(watched))
        if flight is None:
            return 0
        now_ns, charged_ns = self._now_ns(), 0
        ns = machine.collect(now_ns)
        whole = flight.done if usage is None else self._work(flight, usage, now_ns)
        flight.last = max(0, whole - flight.done)
        self._share(machine, now_ns, ns, landing=flight)
        del machine.flights[id(watched)]
        if usage is not None:
            # More was thought done than there was: that share goes back.
            charged_ns = (
                flight.shared_ns
                * min(whole, flight.done + flight.last)
                // max(flight.done + flight.last, 1)
            )
            self._learn(flight, usage, now_ns)
        machine.over_ns += flight.shared_ns - charged_ns
        if not machine.flights and usage is not None:
            charged_ns, machine.over_ns = charged_ns + machine.over_ns, 0
        machine.charged(charged_ns)
        return charged_ns

    def _work(self, flight: _Flight, usage: Usage, now_ns: int) -> int:
        """Estimated work of a request that has ended, picoseconds."""
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        return self._estimate(flight, fresh, usage.completion_tokens, now_ns)

    def _so_far(self, flight: _Flight, now_ns: int) -> int:
        """The same of one in flight, of what has probably been done of it."""
        seen = flight.watched.tokens_seen
        if seen or flight.watched.first_token_at is not None:
            return self._estimate(flight, flight.prompt_tokens, max(seen, 1), now_ns)
        # Nothing is seen of it: as far as its time will have taken it.
        per_request, prefill, step, token = flight.server.fit.coefficients()
        left_ns = now_ns - flight.began_ns - per_request
        beside = _beside(flight, now_ns)
        prompt_ns = prefill * flight.prompt_tokens
        if left_ns <= prompt_ns:
            part = max(left_ns, 0.0) / max(prompt_ns, 1.0)
            return self._estimate(flight, round(flight.prompt_tokens * part), 0, now_ns)
        answer = (left_ns - prompt_ns) / max(step + token * beside, 1.0)
        answer = min(answer, 4 * _UNKNOWN_ANSWER_TOKENS)
        return self._estimate(flight, flight.prompt_tokens, round(answer), now_ns)

    def _estimate(self, flight: _Flight, fresh: int, answer: int, now_ns: int) -> int:
        _, prefill, step, token = flight.server.fit.coefficients()
        per_token = token + step / _beside(flight, now_ns)
        return round(_PS * (prefill * fresh + per_token * answer)) + 1

    def _learn(self, flight: _Flight, usage: Usage, now_ns: int) -> None:
        """From one answer: when its first token came, and how fast the others followed."""
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        beside = _beside(flight, now_ns)
        later = max(usage.completion_tokens - 1, 0)
        first_at, fit = flight.watched.first_token_at, flight.server.fit
        if first_at is None:
            fit.observe((1, fresh, later, later * beside), now_ns - flight.began_ns)
            return
        first_ns = round(first_at * 1e9)
        waited_ns = first_ns - flight.began_ns
        per_request, prefill, *_ = fit.coefficients()
        beyond_ns = waited_ns - (per_request + prefill * fresh)
        if fit.fitted and beyond_ns > 0:  # mostly for others: it says little of what a prompt takes
            waited_ns -= round(beyond_ns * _WAITING)
        fit.observe((1, fresh, 0, 0), waited_ns)
        fit.observe((0, 0, later, later * beside), now_ns - first_ns)


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


def _beside(flight: _Flight, now_ns: int) -> float:
    """How many requests were in flight while this one was, itself included, on average."""
    passed_ns = now_ns - flight.began_ns
    if passed_ns <= 0:
        return 1.0
    return max(1.0, (flight.server.machine.beside_ns - flight.beside_ns) / passed_ns)


_NOTHING: Final = contextlib.nullcontext()
