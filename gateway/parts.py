"""What the pipeline is made of, built once per process by `app.create_app`."""

from collections.abc import Callable, Mapping

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.contract import Backend
from gateway.cache.caches import Caches
from gateway.cache.semantic import Encoder
from gateway.ledger.budgets import Budgets
from gateway.ledger.foreign_time import ForeignTime
from gateway.ledger.keys import KeyBook
from gateway.ledger.ledger import Ledger
from gateway.ledger.pricing import CostEstimator
from gateway.ledger.reservation_log import ReservationLog
from gateway.limits.fair_queue import FairQueues
from gateway.limits.limiter import Limiter
from gateway.observability import Metrics
from gateway.overrides.channel import Overrides
from gateway.routing.conversations import Conversations
from gateway.routing.health import BackendRegistry
from gateway.routing.policy_book import PolicyBook
from gateway.routing.policy_history import PolicyHistory
from gateway.routing.router import Router
from gateway.routing.shared_breakers import SharedBreakers
from gateway.settings import BackendSettings, Settings


class Parts(Struct, frozen=True, kw_only=True):
    """The rooms behind the front door."""

    settings: Settings
    backends: Mapping[str, Backend]
    backend_settings: Mapping[str, BackendSettings]
    """By name; the supervised encoder included."""
    registry: BackendRegistry
    book: PolicyBook
    router: Router
    caches: Caches | None
    encoder: Encoder | None
    """Of the semantic cache and of second looks."""
    ledger: Ledger
    estimator: CostEstimator
    foreign: ForeignTime
    history: PolicyHistory
    budgets: Budgets
    reservations: ReservationLog
    keys: KeyBook
    limiter: Limiter
    queues: FairQueues
    breakers: SharedBreakers | None
    """None: without Redis each process has its own."""
    overrides: Overrides
    conversations: Conversations
    metrics: Metrics
    engine: AsyncEngine
    """Of the ledger's database."""
    started_at: float
    """Unix seconds of `headgate serve`."""
    clock: Callable[[], float]
    """Unix seconds."""
    new_id: Callable[[], str]
