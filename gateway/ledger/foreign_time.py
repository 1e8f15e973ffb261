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

from backends.client.prefixes import prefix_blocks
from backends.client.server_metrics import ServerMetrics
from backends.contract import Chunk, Usage
from backends.meter import MeterSlot
from gateway.ledger.foreign_machine import Flight, Machine, Server, Watched
from gateway.ledger.foreign_work import Seen
from gateway.settings import BackendSettings, Settings

_MOST_UNKNOWN_TOKENS: Final = 256
_SILENT_NS: Final = 60 * 10**9
"""After so long without a request what is left is lost."""
_METRICS_EVERY: Final = 5
"""Seconds."""


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
        machines: dict[str, Machine] = {}
        self._now_ns = now_ns
        self._servers: dict[str, Server] = {}
        self._machines: list[Machine] = []
        for backend in settings.backends:
            name = foreign_machine(settings, backend)
            if name is not None:
                slot = (slots or {}).get(name)
                machine = machines.setdefault(name, Machine(slot=slot, flights={}))
                self._servers[backend.name] = Server(machine)
        self._machines = list(machines.values())

    @property
    def backends(self) -> list[str]:
        """The foreign servers whose machine's time is shared."""
        return list(self._servers)

    def flight(
        self,
        watched: Watched,
        backend: str,
        prompt_tokens: int,
        body: Mapping[str, Any] | None = None,
    ) -> contextlib.AbstractContextManager[None]:
        """A request is at a backend while inside; `end` it there to know its share.

        Left without that, what it used is lost.

        Args:
            body: as it is sent; tells what of its prompt the server has read before.
        """
        server = self._servers.get(backend)
        if server is None:
            return _NOTHING
        blocks = () if body is None or server.cache.reports else prefix_blocks(body)
        return self._inside(server, watched, prompt_tokens, server.cache.sent(blocks))

    @contextlib.contextmanager
    def _inside(
        self, server: Server, watched: Watched, prompt_tokens: int, seen_share: float
    ) -> Iterator[None]:
        machine, now_ns = server.machine, self._now_ns()
        machine.collect(now_ns)
        expected_ns = now_ns + server.first_after(prompt_tokens)
        flight = Flight(
            server, watched, prompt_tokens, now_ns, machine.parts_ns, expected_ns, seen_share
        )
        if not machine.flights:
            machine.busy_since_ns = now_ns
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
        if not flight.marks:
            flight.server.machine.seen(flight, at_ns)
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
        known_ns = machine.rate * self._done(flight, now_ns)
        return round(max(even_ns, known_ns)), beside

    def heard(self, backend: str, metrics: ServerMetrics) -> None:
        """What the server's /metrics said, now and then."""
        server = self._servers[backend]
        before, server.metrics = server.metrics, metrics
        if before is None:
            if metrics.cached_tokens is not None:
                server.cache.expected()
            return
        server.cache.heard(metrics.cached_since(before))
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

    def _land(self, machine: Machine, watched: Watched, usage: Usage) -> int:
        now_ns = self._now_ns()
        machine.collect(now_ns)
        flight = machine.flights.pop(id(watched), None)
        if flight is None:
            return 0
        machine.changed()
        machine.travelled(flight.server.weights.own_ns)
        cached = flight.server.cache.cached(
            usage.prompt_tokens, usage.cached_tokens, flight.seen_share
        )
        fresh = max(0, usage.prompt_tokens - cached)
        work_ns = flight.server.weights.work_ns(
            usage.prompt_tokens, fresh, usage.completion_tokens, machine.beside(flight, now_ns)
        )
        others_ns = self._others(machine, now_ns, machine.owed_ns - work_ns)
        price = machine.price(max(work_ns, 1.0), others_ns)
        share_ns = round(min(max(price, 0.0), now_ns - flight.began_ns))
        # An engine of ours behind it says what to charge; the rest of the share served nobody.
        charged_ns = share_ns if usage.headgate is None else usage.headgate.billable_ns
        machine.charged(charged_ns)
        if share_ns > charged_ns:
            machine.lose(share_ns - charged_ns)
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
            else min(now_ns, began_ns + weights.first_after(fresh)),
        )
        weights.ended(seen)
        return charged_ns

    def _leave(self, machine: Machine, watched: Watched) -> None:
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

    def _others(self, machine: Machine, now_ns: int, most_unseen_ns: float) -> float:
        """The work done for those in flight; what nobody saw of it is not more than there was time
        for."""
        seen = unseen = 0.0
        for flight in machine.flights.values():
            if flight.marks:
                seen += self._done(flight, now_ns)
            else:
                unseen += self._done(flight, now_ns)
        return seen + min(unseen, max(0.0, most_unseen_ns - seen))

    def _done(self, flight: Flight, now_ns: int) -> float:
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
