"""Every version of a policy that ever decided, in SQL: written beside the requests, never before.

A version is noted when it first decides in this process and written soon after; while the database
is away it waits, and no request does.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from gateway.ledger.database import insert_once, writing
from gateway.ledger.tables import policy_versions, requests
from gateway.routing.policy_book import LoadedPolicy

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger(__name__)

RETRY_S = 5.0


class Version(Struct, frozen=True, kw_only=True):
    """One version of a policy, and the requests on which it decided."""

    name: str
    sha256: str
    first_us: int
    requests: int = 0
    last_us: int | None = None
    """When it last decided; None: no row is left that says so."""


class UnknownVersion(LookupError):
    """No version of that name and digest ever decided."""


class PolicyHistory:
    """Writes versions as they appear. One per gateway process."""

    def __init__(self, engine: "AsyncEngine", clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._noted: asyncio.Queue[tuple[LoadedPolicy, int]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def note(self, loaded: LoadedPolicy) -> None:
        """Keep a version that has just decided for the first time here."""
        self._noted.put_nowait((loaded, round(self._clock() * 1e6)))

    async def start(self) -> None:
        """Start writing."""
        self._task = asyncio.create_task(self._run(), name="policy-history")

    async def aclose(self) -> None:
        """Stop; what is still waiting gets one more try."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(SQLAlchemyError, OSError):
            await self.flush()

    async def flush(self) -> None:
        """Write what was noted so far. Raises SQLAlchemyError or OSError; then it is kept."""
        while not self._noted.empty():
            loaded, at_us = self._noted.get_nowait()
            try:
                await self._write(loaded, at_us)
            except BaseException:
                self._noted.put_nowait((loaded, at_us))
                raise

    async def _run(self) -> None:
        while True:
            loaded, at_us = await self._noted.get()
            self._noted.put_nowait((loaded, at_us))
            try:
                await self.flush()
            except (SQLAlchemyError, OSError) as error:
                log.warning("policy_history_failed", policy=loaded.ref, error=str(error)[:200])
                await asyncio.sleep(RETRY_S)

    async def _write(self, loaded: LoadedPolicy, at_us: int) -> None:
        row = {
            "name": loaded.name,
            "sha256": loaded.sha256,
            "text": loaded.text,
            "first_us": at_us,
        }
        async with writing(self._engine) as connection:
            await connection.execute(insert_once(self._engine.dialect.name, policy_versions), row)


async def list_versions(connection: "AsyncConnection", name: str | None = None) -> list[Version]:
    """All versions that ever decided, the newest first."""
    decided = (
        select(
            requests.c.policy,
            requests.c.policy_sha256,
            func.count().label("count"),
            func.max(requests.c.started_us).label("last_us"),
        )
        .group_by(requests.c.policy, requests.c.policy_sha256)
        .subquery()
    )
    kept = policy_versions.c
    wanted = (
        select(kept.name, kept.sha256, kept.first_us, decided.c.count, decided.c.last_us)
        .outerjoin(
            decided,
            (decided.c.policy == kept.name) & (decided.c.policy_sha256 == kept.sha256),
        )
        .order_by(kept.first_us.desc(), kept.name)
    )
    if name is not None:
        wanted = wanted.where(kept.name == name)
    return [
        Version(name=n, sha256=sha, first_us=first, requests=count or 0, last_us=last)
        for n, sha, first, count, last in (await connection.execute(wanted)).all()
    ]


async def version_text(connection: "AsyncConnection", name: str, sha256: str) -> tuple[str, str]:
    """(sha256, text) of the version whose digest begins so. Raises UnknownVersion."""
    kept = policy_versions.c
    found = (
        await connection.execute(
            select(kept.sha256, kept.text).where(
                kept.name == name, kept.sha256.startswith(sha256, autoescape=True)
            )
        )
    ).all()
    if len(found) != 1:
        what = "more than one version begins" if found else "no version that ever decided begins"
        raise UnknownVersion(f"policy {name!r}: {what} with {sha256!r}; see `policy history`")
    return found[0][0], found[0][1]
