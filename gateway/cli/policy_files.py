"""What the policy commands share: finding files, and a router over stand-ins that never answer."""

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.common import fail, log_to_stderr
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

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
