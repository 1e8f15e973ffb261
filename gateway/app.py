"""`create_app`: the one place where the gateway is put together.

The parts are made in `gateway/processes/assembly.py` and handed to whoever needs them; the lifespan
starts what has tasks of its own (`gateway/processes/lifetime.py`) and closes all of it in the
reverse order.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin

from backends.contract import Backend
from gateway.api.chat import Handler, chat_handlers
from gateway.api.errors import error_handlers
from gateway.api.routes import routes
from gateway.batches.runner import BatchRunner
from gateway.cache.model import Store
from gateway.errors import SettingsError
from gateway.pipeline import Pipeline
from gateway.processes.assembly import assemble
from gateway.processes.lifetime import running, watching
from gateway.processes.runtime import Runtime, database_url
from gateway.routing.classifier import Classifier
from gateway.settings import Settings


def create_app(
    runtime: Runtime | Settings,
    *,
    backends: Mapping[str, Backend] | None = None,
    store: Store | None = None,
    classifier: Classifier | None = None,
    clock: Callable[[], float] | None = None,
    new_id: Callable[[], str] | None = None,
) -> Litestar:
    """Put the gateway together.

    Args:
        runtime: from the supervisor; bare settings stand for a gateway without one, which
            migrates its database itself and keeps its caches in memory or the Redis they name.
        backends: by name, instead of those that the settings describe.
        store: of the caches, instead of the one that the settings describe.
        classifier: instead of the one whose head the settings name.
        clock: Unix seconds; None: the database's clock, on which all hosts agree.
        new_id: makes request ids.

    Raises:
        SettingsError: a policy, head, key or backend cannot be used as configured.
    """
    alone = isinstance(runtime, Settings)
    if isinstance(runtime, Settings):
        runtime = _without_supervisor(runtime, time.time())
    parts = assemble(
        runtime,
        backends=backends,
        store=store,
        classifier=classifier,
        clock=clock,
        new_id=new_id,
    )
    pipeline = Pipeline(parts)
    batches = BatchRunner(pipeline)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        if alone:
            await _migrate(runtime.database_url)
        async with running(parts), watching(parts, Path(runtime.state_dir)):
            await batches.start()
            yield
            await batches.aclose()
            await pipeline.shadows.aclose()
            await pipeline.late_charges.aclose()

    chats = chat_handlers(pipeline)
    app = _App(
        route_handlers=routes(pipeline, batches, chats),
        exception_handlers=error_handlers(),
        lifespan=[lifespan],
        cors_config=_cors(parts.settings.server.cors_origins),
        state=State({"pipeline": pipeline, "batches": batches}),
        request_max_body_size=parts.settings.server.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
    if app.cors_config is None:  # else browsers' preflights and headers are Litestar's to add
        app.chats = chats
    return app


class _App(Litestar):
    """Litestar without the plugins for Pydantic and attrs, which nothing here uses.

    They are added whenever those packages can be imported, and take 12 MB of every process.
    """

    chats: Mapping[str, Handler] = MappingProxyType({})
    """By path, called past Litestar: six calls to get there cost more than a look into a cache."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Coroutine[Any, Any, None]:
        """Chats go past the layers; HEAD is GET, and the server leaves the body away."""
        chat = self.chats.get(scope.get("path"))
        if chat is not None:
            return chat(scope, receive, send)
        if scope.get("method") == "HEAD":
            scope["method"] = "GET"
        return super().__call__(scope, receive, send)

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


def _cors(origins: list[str]) -> CORSConfig | None:
    """Which web pages' scripts may ask, and that they may read our headers, too."""
    return CORSConfig(allow_origins=origins, expose_headers=["*"]) if origins else None


def _without_supervisor(settings: Settings, now: float) -> Runtime:
    if not settings.state_dir:
        raise SettingsError("state_dir is empty; settings.load() fills it in")
    redis = settings.cache.redis
    return Runtime(
        settings=settings,
        redis_url=None if redis in ("auto", "memory") else redis,
        database_url=database_url(settings),
        state_dir=settings.state_dir,
        run_dir=settings.state_dir,
        started_at=now,
    )


async def _migrate(url: str) -> None:
    from migrations import upgrade

    await asyncio.to_thread(upgrade, url)
