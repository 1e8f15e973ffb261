"""The reports that pages are made of, remembered for seconds: ten readers cost what one does."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from msgspec import Struct

from gateway.ledger.compare import compared_report
from gateway.ledger.reports import cost_rows, cost_tables, costs_report
from gateway.parts import Parts
from gateway.processes.aside import Aside, AsideError, ask_aside

log = structlog.get_logger(__name__)

FRESH_S = 5.0
STALE_S = 30.0
"""Up to this age an answer is still given, while a fresh one is on its way."""
FORECAST_S = 600.0
"""Forecasts go by full hours, and take longer than a page may."""
HINT_DAYS = 14
MOST = 100


class _Answer(Struct):
    task: asyncio.Task[Any]
    """The newest that is asked for."""
    asked_at: float
    value: Any = None
    made_at: float = float("-inf")
    stale_s: float = STALE_S


class Questions:
    """One per gateway process.

    Args:
        clock: seconds, monotonic.
        not_now_s: what nobody waits for begins this much later, after the page that asked for it.
        aside: who finds that out.
    """

    def __init__(
        self,
        parts: Parts,
        clock: Callable[[], float] = time.monotonic,
        *,
        not_now_s: float = 1.0,
        aside: Aside = ask_aside,
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._not_now_s = not_now_s
        self._aside = aside
        self._answers: dict[str, _Answer] = {}

    async def rows(self, **question: Any) -> list[dict[str, Any]]:
        """As `cost_rows`."""
        found: list[dict[str, Any]] = await self._ask(
            f"rows {_key(question)}", lambda: cost_rows(self._parts.engine, **question)
        )
        return found

    async def tables(self, **question: Any) -> list[list[dict[str, Any]]]:
        """As `cost_tables`."""
        found: list[list[dict[str, Any]]] = await self._ask(
            f"tables {_key(question)}", lambda: cost_tables(self._parts.engine, **question)
        )
        return found

    async def report(self, **question: Any) -> dict[str, Any]:
        """As `costs_report`; beside another period with `compare`."""
        engine, settings = self._parts.engine, self._parts.settings
        make = compared_report if "compare" in question else costs_report
        found: dict[str, Any] = await self._ask(
            f"report {_key(question)}", lambda: make(engine, settings, **question)
        )
        return found

    async def month_end(self, tz: str) -> dict[str, Any] | None:
        """What the running month will have cost, once that is found out: nobody waits for it."""
        kept: dict[str, Any] | None = await self._later("month_end", tz=tz)
        return kept

    async def idle_hints(self, tz: str) -> list[str]:
        """Machines that mostly idle, in words, once that is found out."""
        return await self._later("idle_hints", tz=tz, days=HINT_DAYS) or []

    async def _later(self, name: str, **about: str | int) -> Any:
        """The newest answer that is there: nobody waits for one."""

        async def later() -> Any:
            await asyncio.sleep(self._not_now_s)
            try:
                return await self._aside(self._parts.engine, self._parts.settings, name, **about)
            except AsideError as error:
                log.warning("page_without_answer", error=str(error))
                return None

        key = f"{name} {_key(about)}"
        return await self._ask(key, later, fresh_s=FORECAST_S, stale_s=6 * FORECAST_S, wait=False)

    async def _ask(
        self,
        key: str,
        make: Callable[[], Awaitable[Any]],
        *,
        fresh_s: float = FRESH_S,
        stale_s: float = STALE_S,
        wait: bool = True,
    ) -> Any:
        """The answer to a question, remembered.

        Args:
            wait: where none is young enough; else an old one is given, or None.
        """
        now = self._clock()
        known = self._answers.get(key)
        if known is None or (known.task.done() and now - known.asked_at >= fresh_s):
            task = asyncio.ensure_future(make())
            known = self._answers[key] = _Answer(
                task=task,
                asked_at=now,
                value=known.value if known else None,
                made_at=known.made_at if known else float("-inf"),
                stale_s=stale_s,
            )
            task.add_done_callback(lambda done: self._keep(key, done))
            self._forget()
        if not known.task.done() and (not wait or now - known.made_at < stale_s):
            return known.value
        return await asyncio.shield(known.task)

    def _keep(self, key: str, done: "asyncio.Task[Any]") -> None:
        known = self._answers.get(key)
        if known is None or known.task is not done:
            return
        if done.cancelled() or done.exception() is not None:
            del self._answers[key]  # whoever waits hears of it; the next one asks again
            return
        known.value, known.made_at = done.result(), known.asked_at

    def _forget(self) -> None:
        """What is too old to be given, and beyond MOST the oldest."""
        now = self._clock()
        for key, known in list(self._answers.items()):
            over = len(self._answers) > MOST
            if over or (known.task.done() and now - known.made_at >= known.stale_s):
                del self._answers[key]


def _key(question: dict[str, Any]) -> str:
    return repr(sorted((name, value) for name, value in question.items() if name != "now"))
