"""A gateway in the test's own event loop: real ledger on SQLite, memory caches, echo backends."""

import atexit
import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
from litestar import Litestar

from backends.contract import Backend
from backends.echo import EchoBackend
from gateway.app import create_app
from gateway.cache.model import Store
from gateway.ledger.records import Settlement
from gateway.parts import Parts
from gateway.pipeline import Pipeline
from gateway.routing.classifier import Classifier
from gateway.settings import BackendSettings, CacheSettings, RoutingSettings, Settings
from migrations import upgrade

POLICY = """
[[rules]]
name = "forbidden"
when = { tags = { forbidden = ["yes"] } }
deny = "not here"

[[rules]]
name = "short"
when = { tags = { short = ["yes"] } }
route = "small"
max_tokens = 2

[[rules]]
name = "uncached"
when = { tags = { uncached = ["yes"] } }
route = "small"
cache = "off"

[default]
route = "small"
fallbacks = ["base"]
"""


class Gateway:
    """A running gateway and its client."""

    def __init__(self, app: Litestar, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client
        pipeline: Pipeline = app.state["pipeline"]
        self.pipeline = pipeline
        self.parts: Parts = pipeline.parts

    async def chat(self, text: str = "hello there", **fields: Any) -> Any:
        """POST a chat; `headers` go as headers, everything else into the body."""
        headers = fields.pop("headers", None)
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def post(self, path: str, content: bytes, **headers: str) -> Any:
        """POST raw bytes."""
        return await self.client.post(path, content=content, headers=headers)

    async def settled(self, answer: Any) -> Settlement:
        """The ledger's row of an answer."""
        found = await self.parts.ledger.find(answer.headers["x-headgate-request-id"])
        assert found is not None, "the request is not in the ledger"
        return found

    async def rows(self) -> int:
        """Rows in `requests`."""
        from sqlalchemy import text

        assert await self.parts.ledger.flush()
        async with self.parts.engine.connect() as connection:
            found = await connection.execute(text("SELECT COUNT(*) FROM requests"))
            return int(found.scalar_one())


def settings(folder: Path, *backends: BackendSettings, **tables: Any) -> Settings:
    """Settings with a policy of their own, `small` before `base`."""
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "test.toml").write_text(POLICY)
    return Settings(
        state_dir=str(folder / "state"),
        routing=RoutingSettings(policy="test", policy_dirs=[str(folder / "policies")]),
        cache=tables.pop("cache", CacheSettings(redis="memory")),
        backends=list(backends)
        or [
            BackendSettings(name="small", kind="echo", model="echo-small", tier="small"),
            BackendSettings(name="base", kind="echo", model="echo-base", tier="base"),
        ],
        **tables,
    )


@functools.cache
def shipped_classifier() -> Classifier:
    """Loaded once."""
    return Classifier.load()


@functools.cache
def _migrated() -> Path:
    """An empty, migrated database: copying it costs less than migrating one per test."""
    folder = Path(tempfile.mkdtemp(prefix="headgate-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    upgrade(f"sqlite+aiosqlite:///{folder / 'headgate.db'}")
    return folder / "headgate.db"


def prepare(state: Path) -> None:
    """An empty, migrated database in a state folder that has none."""
    state.mkdir(exist_ok=True)
    if not (state / "headgate.db").exists():
        shutil.copy(_migrated(), state / "headgate.db")


@contextlib.asynccontextmanager
async def gateway(
    chosen: Settings,
    backends: Mapping[str, Backend] | None = None,
    store: Store | None = None,
    classifier: Classifier | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway over echo backends (or the given ones)."""
    made = backends or {backend.name: EchoBackend(backend.name) for backend in chosen.backends}
    prepare(Path(chosen.state_dir))
    classifier = classifier or shipped_classifier()
    app = create_app(chosen, backends=made, store=store, classifier=classifier)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client,
    ):
        yield Gateway(app, client)


def events(answer: Any) -> list[dict[str, Any]]:
    """The decoded events of a stream; checks that [DONE] ends it."""
    lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", f"the stream ends with {lines[-1][:200]!r}"
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    """The text that a chat stream carried."""
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk.get("choices", ())
    )


def decode(answer: Any) -> Any:
    """The answer's JSON."""
    return msgspec.json.decode(answer.content)
