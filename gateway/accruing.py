"""Requests at somebody else's server on a machine of ours, held at what their time there costs.

Such a server says nothing of costs until it is done, and its time may cost more than anybody
expected: it stalls, or its machine is busy. So what has been shared to the request so far is looked
at twice a second, and more is held before it is used up. Where a budget has no room for more, a
stream ends at its next piece; a whole answer cannot be ended half-way, and what it costs beyond is
overrun.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from backends.contract import EngineUsage, Usage
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.parts import Parts
from gateway.spending import price_so_far

log = structlog.get_logger(__name__)

LOOK_S = 0.5
_END_S = 0.1
"""What a stream may take to end."""


def held_as_it_goes(
    parts: Parts, x: Exchange, backend: str
) -> contextlib.AbstractAsyncContextManager[None]:
    """While inside, more is held for the request as its time adds up; `x.out_of_money` says when
    there was no more. Costs nothing where nothing is held, or the backend tells of its costs."""
    if x.reservation is None or parts.foreign.so_far(x, backend) is None:
        return _NOTHING
    return _looking(parts, x, backend)


@contextlib.asynccontextmanager
async def _looking(parts: Parts, x: Exchange, backend: str) -> AsyncIterator[None]:
    looking = asyncio.create_task(_keep_up(parts, x, backend), name=f"holding {x.request_id}")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _keep_up(parts: Parts, x: Exchange, backend: str) -> None:
    while not x.out_of_money:
        await asyncio.sleep(LOOK_S)
        x.out_of_money = not await _goes_on(parts, x, backend)


async def _goes_on(parts: Parts, x: Exchange, backend: str) -> bool:
    """Whether enough is held until the next look; else only for what it takes to end."""
    for ahead_s in (2 * LOOK_S, LOOK_S, _END_S):
        try:
            await _hold(parts, x, backend, ahead_s)
        except (GatewayError, OSError) as error:
            log.info("hold_refused", request_id=x.request_id, why=type(error).__name__)
        else:
            return ahead_s >= LOOK_S
    return False


async def _hold(parts: Parts, x: Exchange, backend: str, ahead_s: float) -> None:
    """Hold what was used so far, and what will be in so many seconds."""
    reservation, found = x.reservation, parts.foreign.so_far(x, backend)
    if reservation is None or found is None:
        return
    shared_ns, beside = found
    used = Usage(headgate=EngineUsage(decode_ns=shared_ns + round(ahead_s * 1e9 / beside)))
    missing = x.cost_nano_usd + price_so_far(parts, x, backend, used) - reservation.nano_usd
    if missing > 0:
        await parts.budgets.extend(reservation, missing, backend)
        parts.reservations.more(x.request_id, reservation.nano_usd)


_NOTHING: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
