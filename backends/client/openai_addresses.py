"""The addresses of one OpenAI-compatible server, and what they tell beside its answers.

Health and load, token counts, the usage of requests that were cut off, the machine's clock.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from backends.client.breaker import Breaker, BreakerSettings
from backends.client.http_replica import TRANSPORT_ERRORS, Replica, read_body
from backends.client.openai_errors import timed_out, transport_error
from backends.client.openai_health import foreign_health, own_health, why_unready
from backends.client.replica_set import ReplicaSet
from backends.client.server_metrics import ServerMetrics
from backends.contract import BackendHealth, GenerateRequest, Usage
from backends.errors import BackendError
from backends.wire import usage_from_wire

if TYPE_CHECKING:
    from backends.tokenizer import Tokenizer  # the library takes a moment, and few ask for it

_PROBE_TIMEOUT_S = 5.0
_QUESTION = GenerateRequest(request_id="", endpoint="chat/completions", body={})


class Addresses:
    """One or more replicas of a model behind OpenAI's HTTP API.

    Attributes:
        name: what the gateway calls it.
        model: what the server calls it.
        outstanding: requests under way or waiting for a free slot.
    """

    def __init__(
        self,
        name: str,
        base_urls: Sequence[str],
        *,
        model: str,
        api_key: str | None,
        uds: str | Path | Sequence[str | Path] | None,
        max_concurrency: int | None,
        breaker: BreakerSettings | None,
        tokenizer: "Tokenizer | None",
    ) -> None:
        self.name = name
        self.model = model
        self.outstanding = 0
        self._max_concurrency = max_concurrency or 0
        headers = [
            (b"content-type", b"application/json"),
            # Decompressing costs more than a local hop saves.
            (b"accept-encoding", b"identity"),
        ]
        if api_key:
            headers.append((b"authorization", f"Bearer {api_key}".encode()))
        self._headers = headers
        if uds is None:
            self._replicas = [Replica(url, None, breaker) for url in base_urls]
        else:
            sockets = [uds] if isinstance(uds, str | Path) else uds
            self._replicas = [Replica(base_urls[0], str(socket), breaker) for socket in sockets]
        if not self._replicas:
            raise ValueError(f"backend {name!r} has no address; give base_urls or uds")
        self._set = ReplicaSet(self._replicas)
        self._no_tokenize = False
        self._tokenizer = tokenizer

    async def probe(self) -> BackendHealth:
        """Health of all replicas together: ready if one is, loads added up."""
        found = await asyncio.gather(*(self._probe(replica) for replica in self._replicas))
        for number, health in enumerate(found):
            self._set.probed(number, health.ready)
        ready = [health for health in found if health.ready]
        contexts = [h.context_tokens for h in ready if h.context_tokens is not None]
        kv_usages = [h.kv_usage_ratio for h in ready if h.kv_usage_ratio is not None]
        return BackendHealth(
            ready=bool(ready),
            running=sum(health.running for health in ready),
            waiting=sum(health.waiting for health in ready),
            capacity=sum(health.capacity for health in ready) or self._max_concurrency,
            model_revision="+".join(sorted({h.model_revision for h in ready if h.model_revision})),
            context_tokens=min(contexts, default=None),
            kv_usage_ratio=max(kv_usages, default=None),
            detail="; ".join(dict.fromkeys(health.detail for health in found if health.detail)),
            accepts=_common([health.accepts for health in ready]),
        )

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Exact prompt tokens by our copy of the tokenizer, else by the server's /tokenize (ours,
        vLLM's); None if it has none."""
        if self._tokenizer is not None:
            return await asyncio.to_thread(_count, self._tokenizer, dict(body))
        if self._no_tokenize:
            return None
        fields = ("model", "messages", "prompt", "tools")
        question = {key: body[key] for key in fields if body.get(key) is not None}
        try:
            status, answer = await self._ask("POST", "/tokenize", msgspec.json.encode(question))
        except BackendError:
            return None
        if status in (404, 405, 501):
            self._no_tokenize = True
        count = answer.get("count") if status == 200 else None
        return count if isinstance(count, int) else None

    async def ask(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST to a path beside the API (/tokenize, /detokenize): status and JSON object.

        Raises:
            BackendError: the server does not answer.
        """
        return await self._ask("POST", path, msgspec.json.encode(body))

    async def usage_of(self, request_id: str) -> Usage | None:
        """Final usage of a request that was cut off; None if no replica knows it."""
        path = f"/requests/{request_id}/usage"
        for replica in self._replicas:
            try:
                status, answer = await self._ask("GET", path, replica=replica)
                usage = usage_from_wire(answer.get("usage")) if status == 200 else None
            except (BackendError, msgspec.ValidationError):
                continue
            if usage is not None:
                return usage
        return None

    async def clocks(self) -> list[dict[str, int]]:
        """Each answering replica's measured machine time: `/clock` of our own servers."""
        found = []
        for replica in self._replicas:
            with contextlib.suppress(BackendError):
                status, answer = await self._ask("GET", "/clock", replica=replica)
                if status == 200 and "busy_ns" in answer:
                    found.append(answer)
        return found

    async def metrics_text(self) -> str:
        """What the answering replicas say at `/metrics`, one after another."""
        found = []
        for replica in self._replicas:
            with contextlib.suppress(BackendError):
                status, body = await self._ask_raw("GET", "/metrics", replica=replica)
                if status == 200:
                    found.append(body.decode("utf-8", "replace"))
        return "\n".join(found)

    def cooled_s(self) -> float:
        """For how long no address wants requests: each has said 429."""
        return self._set.cooled_s()

    @property
    def breakers(self) -> dict[str, Breaker]:
        """Of each address, where there are several."""
        if len(self._replicas) == 1:
            return {}
        return {replica.address: replica.breaker for replica in self._replicas}

    @property
    def on_breaker(self) -> Callable[[str], None] | None:
        """Told of each address that was ejected or is back."""
        return self._set.on_breaker

    @on_breaker.setter
    def on_breaker(self, told: Callable[[str], None] | None) -> None:
        self._set.on_breaker = told

    async def aclose(self) -> None:
        """Close all connections."""
        for replica in self._replicas:
            await replica.aclose()

    async def _ask(
        self, method: str, path: str, content: bytes = b"", replica: Replica | None = None
    ) -> tuple[int, dict[str, Any]]:
        """A small question beside the API: status and JSON object ({} if the answer is none)."""
        status, body = await self._ask_raw(method, path, content, replica)
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    async def _ask_raw(
        self, method: str, path: str, content: bytes = b"", replica: Replica | None = None
    ) -> tuple[int, bytes]:
        """The same, with the answer as it came."""
        replica = replica or self._first_well()
        url = replica.root.copy_with(raw_path=path.encode())
        if path.startswith("/v1/"):
            url = httpx.URL(f"{replica.base}{path.removeprefix('/v1')}")
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                response = await replica.send(method, url, self._headers, content, _PROBE_TIMEOUT_S)
                try:
                    body = await read_body(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise timed_out(self.name, _PROBE_TIMEOUT_S) from error
        except TRANSPORT_ERRORS as error:
            raise transport_error(self.name, error) from error
        return response.status_code, body

    def _first_well(self) -> Replica:
        """Any replica that is well, for questions that all of them can answer."""
        order = self._set.in_order(_QUESTION, (), 0)
        return self._replicas[order[0]]

    async def _load_of(self, replica: Replica) -> ServerMetrics | None:
        """What its /metrics say of its load; None: it has none, and is not asked again."""
        if replica.no_metrics:
            return None
        try:
            status, body = await self._ask_raw("GET", "/metrics", replica=replica)
        except BackendError:
            return None
        if status >= 500:
            replica.no_metrics = status == 501  # llama.cpp without --metrics
            return None
        metrics = ServerMetrics.parse(body.decode("utf-8", "replace")) if status == 200 else None
        replica.no_metrics = metrics is None or metrics.running is None
        return metrics

    async def _probe(self, replica: Replica) -> BackendHealth:
        try:
            status, health = await self._ask("GET", "/health", replica=replica)
            if status == 200 and "model_revision" in health:
                return own_health(health)
            if status >= 500:
                return BackendHealth(ready=False, detail=why_unready(health, status))
            status, models = await self._ask("GET", "/v1/models", replica=replica)
        except BackendError as error:
            return BackendHealth(ready=False, detail=error.message)
        if status in (401, 403) or status >= 500:
            return BackendHealth(ready=False, detail=f"GET models answered {status}")
        return foreign_health(
            models,
            self.model,
            running=self.outstanding,
            capacity=self._max_concurrency,
            metrics=await self._load_of(replica),
        )


def _common(named: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Capability fields that every replica honours; None: one does not say."""
    told = [frozenset(fields) for fields in named if fields is not None]
    if not told or len(told) < len(named):
        return None
    return tuple(sorted(frozenset.intersection(*told)))


def _count(tokenizer: "Tokenizer", body: Mapping[str, Any]) -> int:
    """Tokens of a chat's or a completion's prompts."""
    if body.get("messages") is not None:
        return len(tokenizer.encode_chat(body["messages"], tools=body.get("tools")))
    prompt = body.get("prompt") or ""
    prompts = prompt if isinstance(prompt, list) else [prompt]
    ids = [tokenizer.encode(one) if isinstance(one, str) else one for one in prompts]
    return sum(len(one) if isinstance(one, list) else 1 for one in ids)
