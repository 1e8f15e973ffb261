"""Which backends can answer now, and how busy they are: probes, breakers and counters.

One task per backend asks `probe()` every `interval_s` (often while it is not ready or its breaker
is open, so that one that starts or comes back is used at once). A request that fails marks the
backend; many in a row open its breaker (`backends/client/breaker.py`), which other gateways on the
same Redis learn of (`gateway/routing/shared_breakers.py`). An open one lets nobody pass until its
pause is over or a probe finds the backend back. A backend that says 429 is well, so its breaker
stays as it is: it is left alone for as long as it asked.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import structlog
from msgspec import Struct

from backends.client.breaker import Breaker
from backends.contract import Backend, BackendHealth
from backends.errors import BackendError, BackendRateLimitedError
from backends.wire import ENGINE_CAPABILITIES
from gateway.settings import BackendSettings, Settings
from policies.model import BackendCard

log = structlog.get_logger(__name__)

_GENERATE = frozenset({"chat/completions", "completions"})
ONLY_VECTORS = frozenset({"embeddings"})
"""What encoders can be asked."""
_ENCODER_CONCURRENCY = 256
"""Of the supervised encoder, which no configuration lists."""


class _State(Struct, kw_only=True, eq=False):
    """What is known of one backend."""

    backend: Backend
    settings: BackendSettings | None
    health: BackendHealth = BackendHealth(ready=False, detail="not probed yet")
    in_flight: int = 0
    breaker: Breaker
    """By the registry's clock."""
    look: asyncio.Event
    """Set when a probe should not wait for its time: the breaker has opened."""
    cool_until: float = 0.0
    """It said 429, and when to come back; 0: it did not."""
    cool_why: str = ""
    card: BackendCard | None = None
    """None: stale."""


class BackendRegistry:
    """Cards of all backends, kept current.

    Args:
        settings: names, tiers, capacities and prices. A backend that is not listed there is the
            supervised encoder.
        backends: by name.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[str, Backend],
        *,
        interval_s: float = 2.0,
        not_ready_interval_s: float = 0.25,
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        listed = {backend.name: backend for backend in settings.backends}
        self._states = {
            name: _State(
                backend=backend,
                settings=listed.get(name),
                breaker=Breaker(settings.failure.breaker),
                look=asyncio.Event(),
            )
            for name, backend in backends.items()
        }
        self._encoder_model = settings.cache.semantic.encoder
        self._interval_s = interval_s
        self._not_ready_interval_s = not_ready_interval_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._cards: Mapping[str, BackendCard] | None = None
        self.on_breaker: Callable[[str], None] | None = None
        """Told of each breaker that opened or closed here: NAME, or NAME@ADDRESS of one replica."""
        self._breakers = {name: state.breaker for name, state in self._states.items()}
        for name, backend in backends.items():
            for address, breaker in getattr(backend, "breakers", {}).items():
                self._breakers[f"{name}@{address}"] = breaker
            if hasattr(backend, "on_breaker"):
                backend.on_breaker = partial(self._told_of_replica, name)

    async def start(self) -> None:
        """Probe each backend once, at most `timeout_s`, and go on in the background."""
        await asyncio.gather(*(self.probe(name) for name in self._states))
        self._tasks = [
            asyncio.create_task(self._watch(name), name=f"probe {name}") for name in self._states
        ]

    async def aclose(self) -> None:
        """Stop probing. The backends themselves belong to the caller."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def backend(self, name: str) -> Backend:
        """The backend called `name`; KeyError if there is none."""
        return self._states[name].backend

    def names(self) -> list[str]:
        """All backends, in the order of the configuration."""
        return list(self._states)

    def cards(self) -> Mapping[str, BackendCard]:
        """A card of each backend, as of now; the same mapping until one of them changes."""
        if self._cards is None:
            now = self._clock()
            cards = {name: self._card(name, state, now) for name, state in self._states.items()}
            if any(state.card is None for state in self._states.values()):
                return cards  # a breaker is open, or one cools: the cards change with the clock
            self._cards = cards
        return self._cards

    def ready_names(self) -> list[str]:
        """Backends that a request would be given to now."""
        return [card.name for card in self.cards().values() if card.ready]

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count a request as running there while inside."""
        state = self._states[name]
        state.in_flight += 1
        self._changed(state)
        try:
            yield
        finally:
            state.in_flight -= 1
            self._changed(state)

    def room(self, name: str, processes: int) -> int:
        """Requests that one of so many processes should have there at once, at least one.

        What the backend says it runs at once and half as much again, so that its batches stay
        full while the rest waits here, where teams take turns; never more than configured.
        """
        state = self._states[name]
        limit = state.settings.max_concurrency if state.settings else _ENCODER_CONCURRENCY
        capacity = state.health.capacity
        if capacity:
            limit = min(limit, capacity + capacity // 2 + 1)
        return max(limit // processes, 1)

    def in_flight(self, name: str) -> int:
        """Requests that this process has running there."""
        return self._states[name].in_flight

    def admits(self, name: str) -> bool:
        """Whether a request may go there now: not while the breaker is open. Half-open, one at a
        time may; it ends with `mark_*` or `release`."""
        state = self._states[name]
        if state.cool_until and self._cools(state, self._clock()):
            return False
        if not state.breaker.opened:
            return True
        admitted = state.breaker.admits(self._clock())
        self._changed(state)
        return admitted

    def release(self, name: str) -> None:
        """A request that was admitted left without a verdict."""
        state = self._states[name]
        if state.breaker.trial:
            state.breaker.release()
            self._changed(state)

    def closed_to(self, name: str) -> tuple[str, float]:
        """Why `admits` says no, and for how many seconds, as far as is known."""
        state, now = self._states[name], self._clock()
        if self._cools(state, now):
            return f"it asked to be left alone ({state.cool_why})", state.cool_until - now
        left_s = max(state.breaker.open_until - now, 0.0)
        return f"its breaker is open ({state.breaker.error or 'it failed'})", left_s

    def mark_success(self, name: str) -> None:
        """A request was answered: the breaker closes."""
        state = self._states[name]
        if state.breaker.failures:
            self._close(name, state)

    def mark_error(self, name: str, error: BackendError) -> None:
        """A request failed of something that another backend might not have."""
        if isinstance(error, BackendRateLimitedError):
            self._cool(name, error)
        else:
            self.mark_failure(name, error.message, getattr(error, "retry_after_s", 0.0))

    def mark_failure(self, name: str, error: str = "", retry_after_s: float = 0.0) -> None:
        """A request failed through the backend's fault; many in a row open its breaker, for at
        least as long as the backend asked for."""
        state, now = self._states[name], self._clock()
        if state.breaker.failure(now, error, retry_after_s):
            pause_s = round(state.breaker.open_until - now, 3)
            log.warning("breaker_opened", backend=name, pause_s=pause_s, error=error)
            state.look.set()
            self._told(name)
        self._changed(state)

    def _cool(self, name: str, error: BackendRateLimitedError) -> None:
        """Leave it alone for as long as it asked, within bounds; of several addresses, for as long
        as each did."""
        state, now = self._states[name], self._clock()
        state.breaker.release()
        cool_s = min(error.retry_after_s, state.breaker.settings.open_max_s)
        if hasattr(state.backend, "cooled_s"):
            cool_s = min(cool_s, state.backend.cooled_s())
        if not self._cools(state, now):
            log.info("backend_cools", backend=name, pause_s=round(cool_s, 3), why=error.message)
        if cool_s > 0:
            state.cool_until = max(state.cool_until, now + cool_s)
            state.cool_why = error.message
        self._changed(state)

    @staticmethod
    def _cools(state: _State, now: float) -> bool:
        if state.cool_until and now >= state.cool_until:
            state.cool_until, state.cool_why = 0.0, ""
        return bool(state.cool_until)

    def breakers(self) -> list[str]:
        """Of backends, NAME, and of replicas, NAME@ADDRESS."""
        return list(self._breakers)

    def breaker(self, key: str) -> tuple[int, float, str]:
        """How often it opened in a row, for how many seconds more, and why."""
        breaker = self._breakers[key]
        return breaker.opened, max(breaker.open_until - self._clock(), 0.0), breaker.error

    def adopt_breaker(self, key: str, opened: int, left_s: float, error: str) -> None:
        """Take over what another gateway found out."""
        self._breakers[key].adopt(opened, self._clock() + left_s, error)
        if key in self._states:
            self._changed(self._states[key])
        log.info("breaker_adopted", backend=key, opened=opened, left_s=left_s, error=error)

    def state(self) -> dict[str, dict[str, object]]:
        """Each backend's condition, for /health."""
        now = self._clock()
        return {name: self._describe(name, state, now) for name, state in self._states.items()}

    async def probe(self, name: str) -> BackendHealth:
        """Ask one backend now and keep what it says."""
        state = self._states[name]
        try:
            async with asyncio.timeout(self._timeout_s):
                health = await state.backend.probe()
        except Exception as error:
            # a probe that raises, or hangs, is a backend that is not ready: never our failure
            words = str(error) or f"{type(error).__name__} after {self._timeout_s:g} s"
            health = BackendHealth(ready=False, detail=words)
        if health.ready != state.health.ready:
            log.info("backend_ready_changed", backend=name, ready=health.ready, why=health.detail)
            if health.ready:
                self._close(name, state)
        state.health = health
        self._changed(state)
        return health

    async def _watch(self, name: str) -> None:
        state = self._states[name]
        while True:
            well = state.health.ready and state.breaker.state(self._clock()) != "open"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    self._interval_s if well else self._not_ready_interval_s
                ):
                    await state.look.wait()
            state.look.clear()
            await self.probe(name)

    def _close(self, name: str, state: _State) -> None:
        was_open = bool(state.breaker.opened)
        state.breaker.close()
        self._changed(state)
        if was_open:
            log.info("breaker_closed", backend=name)
            self._told(name)

    def _told(self, name: str) -> None:
        if self.on_breaker is not None:
            self.on_breaker(name)

    def _told_of_replica(self, name: str, address: str) -> None:
        breaker = self._breakers[f"{name}@{address}"]
        event = "replica_ejected" if breaker.opened else "replica_back"
        log.warning(event, backend=name, address=address, error=breaker.error)
        self._told(f"{name}@{address}")

    def _changed(self, state: _State) -> None:
        state.card = self._cards = None

    def _card(self, name: str, state: _State, now: float) -> BackendCard:
        if state.card is not None:
            return state.card
        card = self._make_card(name, state, now)
        # while a breaker is open the card depends on the clock
        state.card = None if state.breaker.opened or state.cool_until else card
        return card

    def _make_card(self, name: str, state: _State, now: float) -> BackendCard:
        settings, health = state.settings, state.health
        trusted = state.breaker.state(now) != "open" and not state.breaker.trial
        ready = health.ready and trusted and not self._cools(state, now)
        if settings is None:
            return BackendCard(
                name=name,
                tier=name,
                model=self._encoder_model,
                endpoints=ONLY_VECTORS,
                ready=ready,
                load=self._load(state),
                revision=health.model_revision,
            )
        price = settings.price
        return BackendCard(
            name=name,
            tier=settings.tier or name,
            model=settings.model,
            machine=settings.machine or "local",
            accepts=_accepts(settings, health),
            endpoints=_endpoints(settings),
            context_tokens=_context(settings, health),
            ready=ready,
            load=self._load(state),
            revision=health.model_revision,
            usd_per_mtok=None
            if price is None
            else float(price.input_usd_per_mtok * 3 + price.output_usd_per_mtok) / 4,
        )

    def _load(self, state: _State) -> float:
        """(queued + running) ÷ capacity; what we sent since the last probe counts too."""
        health = state.health
        limit = state.settings.max_concurrency if state.settings else 0
        capacity = health.capacity or limit or 1
        return max(health.running + health.waiting, state.in_flight) / capacity

    def _describe(self, name: str, state: _State, now: float) -> dict[str, object]:
        card = self._card(name, state, now)
        return {
            "ready": card.ready,
            "tier": card.tier,
            "model": card.model,
            "revision": card.revision,
            "load": round(card.load, 4),
            "in_flight": state.in_flight,
            "running": state.health.running,
            "waiting": state.health.waiting,
            "capacity": state.health.capacity,
            "kv_usage_ratio": state.health.kv_usage_ratio,
            "context_tokens": card.context_tokens,
            "breaker": state.breaker.state(now),
            **self._addresses(state, now),
            "detail": state.cool_why or state.breaker.error or state.health.detail,
        }

    def _addresses(self, state: _State, now: float) -> dict[str, int]:
        """How many a backend has and how many are left out; nothing where it has one."""
        breakers = getattr(state.backend, "breakers", {})
        if not breakers:
            return {}
        ejected = sum(breaker.state(now) != "closed" for breaker in breakers.values())
        return {"addresses": len(breakers), "addresses_ejected": ejected}


def _accepts(settings: BackendSettings, health: BackendHealth) -> frozenset[str]:
    """Capability fields: those that its operator names, and those that our engine honours."""
    named = frozenset(settings.accepts)
    if settings.kind != "engine":
        return named
    return named | (ENGINE_CAPABILITIES if health.accepts is None else frozenset(health.accepts))


def _endpoints(settings: BackendSettings) -> frozenset[str]:
    if settings.kind == "encoder":
        return ONLY_VECTORS
    if "embeddings" in settings.accepts or settings.kind == "echo":
        return _GENERATE | ONLY_VECTORS
    return _GENERATE


def _context(settings: BackendSettings, health: BackendHealth) -> int | None:
    """The smaller of what the configuration says and what the backend reports."""
    known = [
        tokens
        for tokens in (
            settings.context_tokens,
            settings.engine.max_model_len if settings.kind == "engine" else None,
            health.context_tokens,
        )
        if tokens is not None
    ]
    return min(known) if known else None
