"""What the policy commands share: finding files, and a router over stand-ins that never answer."""

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.common import fail, log_to_stderr
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from gateway.routing.health import BackendRegistry
    from gateway.routing.router import Router


def find_policy(settings: Settings, name: str) -> Path:
    """The file of a policy, by path or by name; exits 2 if there is none."""
    from gateway.routing.policy_book import SHIPPED

    direct = Path(name)
    if direct.suffix == ".toml" or "/" in name:
        if direct.is_file():
            return direct
        fail(f"{name}: no such file", code=2)
    folders = [*settings.routing.policy_dirs, str(SHIPPED)]
    for folder in folders:
        file = Path(folder) / f"{name}.toml"
        if file.is_file():
            return file
    known = sorted({file.stem for folder in folders for file in Path(folder).glob("*.toml")})
    there = f"; there are: {', '.join(known)}"
    return fail(f"no policy {name!r} in {', '.join(folders)}{there}", code=2)


async def offline_router(
    settings: Settings, connection: "AsyncConnection | None" = None
) -> "tuple[Router, BackendRegistry]":
    """A router whose backends are always ready and idle; none of them is ever asked to answer.

    Args:
        connection: of the ledger, to learn from what answers cost and how long they took.
    """
    from backends.echo import EchoBackend
    from gateway.ledger.pricing import CostEstimator
    from gateway.routing.classifier import Classifier
    from gateway.routing.forecasts import Forecasts
    from gateway.routing.health import BackendRegistry
    from gateway.routing.policy_book import PolicyBook
    from gateway.routing.router import Router

    log_to_stderr()
    backends = {backend.name: EchoBackend(backend.name) for backend in settings.backends}
    registry = BackendRegistry(settings, backends)
    for backend in backends:
        await registry.probe(backend)
    classifier = Classifier.load(settings.routing.head)
    estimator = CostEstimator(settings)
    forecasts = Forecasts(estimator)
    if connection is not None:
        from gateway.routing.past import learn

        await learn(connection, forecasts, estimator)
    book = PolicyBook(settings.routing)
    return Router(settings, classifier, book, registry, forecasts), registry


async def taught_router(settings: Settings) -> "tuple[Router, bool]":
    """`offline_router`, and whether it has learned from the ledger: of one that is away, or empty,
    it learns nothing. Nothing is made or migrated."""
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.tables import requests

    engine = _ledger(settings)
    if engine is not None:
        try:
            async with engine.connect() as connection:
                answers = (await connection.execute(select(requests.c.request_id).limit(1))).first()
                router, _ = await offline_router(settings, connection)
            return router, answers is not None
        except (SQLAlchemyError, OSError):
            pass
        finally:
            await engine.dispose()
    router, _ = await offline_router(settings)
    return router, False


def _ledger(settings: Settings) -> "AsyncEngine | None":
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from gateway.ledger.database import open_engine
    from gateway.processes.runtime import database_url

    try:
        url = make_url(database_url(settings))
    except ArgumentError:
        return None
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return None
    return open_engine(database_url(settings))
