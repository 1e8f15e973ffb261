"""What has tasks of its own is started here, and closed in the reverse order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.alerts.watch import AlertWatch
from gateway.ledger.foreign_time import listen
from gateway.parts import Parts
from gateway.processes.recovery import Recovery
from gateway.routing.past import learn

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    """Start what has tasks of its own; close everything, in the reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(parts.engine.dispose)
        for backend in parts.backends.values():
            stack.push_async_callback(backend.aclose)
        await parts.ledger.start()
        stack.push_async_callback(parts.ledger.aclose)
        await parts.history.start()
        stack.push_async_callback(parts.history.aclose)
        learning = asyncio.create_task(_learn(parts), name="forecasts")
        stack.push_async_callback(_stop, learning)
        await parts.budgets.start()
        stack.push_async_callback(parts.budgets.aclose)
        stack.push_async_callback(parts.ledger.flush, 2.0)  # budgets may still have to count it
        stack.callback(parts.reservations.close)
        listening = asyncio.create_task(listen(parts.foreign, parts.backends), name="foreign")
        stack.callback(listening.cancel)
        recovery = Recovery(parts)
        await recovery.start()
        stack.push_async_callback(recovery.aclose)
        if parts.caches is not None:
            stack.push_async_callback(parts.caches.aclose)
        await parts.overrides.start()
        stack.push_async_callback(parts.overrides.aclose)
        await parts.limiter.start()
        stack.push_async_callback(parts.limiter.aclose)
        await parts.registry.start()
        stack.push_async_callback(parts.registry.aclose)
        if parts.breakers is not None:
            await parts.breakers.start()
            stack.push_async_callback(parts.breakers.aclose)
        log.info("gateway_started", backends=sorted(parts.backends))
        yield
        log.info("gateway_stopping")


@contextlib.asynccontextmanager
async def watching(parts: Parts, folder: Path) -> AsyncIterator[None]:
    """Look for what somebody should be told of, as long as this lasts."""
    store = parts.caches.store_backend if parts.caches is not None else None
    watch = AlertWatch(
        parts.settings,
        parts.engine,
        cache_answers=None if store is None else store.ping,
        folder=folder,
        clock=parts.clock,
    )
    await watch.start()
    try:
        yield
    finally:
        await watch.aclose()


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has let go of what it held."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _learn(parts: Parts) -> None:
    """What the last answers took, out of the ledger; without it forecasts start from guesses."""
    try:
        async with parts.engine.connect() as connection:
            await learn(connection, parts.router.forecasts, parts.estimator)
    except (SQLAlchemyError, OSError) as error:
        log.info("forecasts_not_learned", error=str(error)[:200])
