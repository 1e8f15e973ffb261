"""Every fault under every policy: what the client saw, who was asked, what was charged.

Real HTTP between gateway and backends; the tests and `bench_failures` run the same.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from msgspec import Struct
from msgspec.structs import asdict, replace
from sqlalchemy import text

from backends.client.breaker import BreakerSettings
from gateway.dispatch.hedging import MIN_SAMPLES
from gateway.processes.assembly import open_backend
from gateway.processes.runtime import Address
from gateway.settings import BackendSettings, PriceSettings, RoutingSettings
from gateway.settings.failure import FailureSettings
from tests.gateway.dispatch.scripted_upstream import WORDS, Fault, ScriptedUpstream
from tests.gateway.dispatch.scripted_upstream import scripted_upstream as upstream
from tests.gateway.serving import Gateway, gateway, settings

POLICIES = {
    "alone": 'route = "a"\nretries = 0',
    "retry": 'route = "a"\nretries = 1',
    "fallback": 'route = "a"\nfallbacks = ["b"]\nretries = 0',
    "restart": 'route = "a"\nfallbacks = ["b"]\nretries = 0\nrestart = true',
    "hedge": 'route = "a"\nfallbacks = ["b"]\nretries = 0\nhedge = {}',
}
FAULTS: tuple[Fault, ...] = get_args(Fault)
TIMEOUT_S = 0.4
USUAL_S = 0.03
COOL_S = 0.02
"""A backend that said 429 is left alone for so long at most: each row shall ask it."""
PRICE = PriceSettings(input_usd_per_mtok=Decimal(1000), output_usd_per_mtok=Decimal(2000))
NANO_PER_TOKEN = {"prompt": 1_000_000, "completion": 2_000_000}


class Row(Struct, frozen=True, kw_only=True):
    """One fault under one policy."""

    fault: str
    policy: str
    stream: bool
    client: str
    answered_by: str | None
    text_whole: bool
    """Whether the client has the three words, once."""
    calls: dict[str, int]
    charges: list[str]
    """KIND BACKEND prompt+completion tokens."""
    cost_adds_up: bool
    rows: int
    """Of the request in the ledger."""
    ms: float


@contextlib.asynccontextmanager
async def served(
    folder: Path, policy: str, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[tuple[Gateway, ScriptedUpstream]]:
    """A gateway with that policy; `a` can fail, `b` is well."""
    async with upstream() as a, upstream() as b:
        listed = [
            BackendSettings(
                name=name,
                kind="openai",
                model="m",
                base_urls=[up.url],
                price=PRICE,
                timeout_s=timeout_s,
            )
            for name, up in (("a", a), ("b", b))
        ]
        failure = FailureSettings(
            failures_to_open=10_000, backoff_s=0.01, retry_budget=1.0, open_max_s=COOL_S
        )
        made = settings(folder, *listed, failure=failure)
        (folder / "policies" / "fault.toml").write_text(f"[default]\n{POLICIES[policy]}\n")
        routing = RoutingSettings(policy="fault", policy_dirs=[str(folder / "policies")])
        made = replace(made, routing=routing)
        backends = {
            backend.name: open_backend(backend, Address(), BreakerSettings(failures_to_open=10_000))
            for backend in listed
        }
        async with gateway(made, backends) as running:
            if policy == "hedge":
                for _ in range(MIN_SAMPLES):
                    for stream in (False, True):
                        running.pipeline.attempts.hedging.latencies.observe("a", stream, USUAL_S)
            yield running, a


async def table(folder: Path, policy: str, timeout_s: float = TIMEOUT_S) -> list[Row]:
    """All faults under one policy, with backends whose timeout that is."""
    asked: list[tuple[str, bool, Any, float]] = []
    async with served(folder, policy, timeout_s) as (running, a):
        headers = {"x-headgate-accept-restart": "1"} if policy == "restart" else {}
        for fault in (None, *FAULTS):
            await a.set(fault)
            await running.parts.registry.probe("a")
            for stream in (False, True):
                began = time.perf_counter()
                answer = await running.chat("hi", max_tokens=8, stream=stream, headers=headers)
                asked.append((fault or "none", stream, answer, time.perf_counter() - began))
                if not running.parts.registry.state()["a"]["ready"]:
                    await asyncio.sleep(COOL_S)
        assert await running.parts.ledger.flush()
        return [
            await _row(running, policy, fault, stream, answer, seconds)
            for fault, stream, answer, seconds in asked
        ]


async def _row(
    running: Gateway, policy: str, fault: str, stream: bool, answer: Any, seconds: float
) -> Row:
    settlement = await running.settled(answer)
    record, charges = settlement.request, settlement.charges
    client, whole = _seen(answer)
    calls: dict[str, int] = {}
    for attempt in record.attempts:
        calls[attempt.backend] = calls.get(attempt.backend, 0) + 1
    cost = sum(
        charge.prompt_tokens * NANO_PER_TOKEN["prompt"]
        + charge.completion_tokens * NANO_PER_TOKEN["completion"]
        for charge in charges
    )
    return Row(
        fault=fault,
        policy=policy,
        stream=stream,
        client=client,
        answered_by=record.backend,
        text_whole=whole,
        calls=calls,
        charges=[f"{c.kind} {c.backend} {c.prompt_tokens}+{c.completion_tokens}" for c in charges],
        cost_adds_up=record.cost_nano_usd == cost == sum(c.cost_nano_usd for c in charges),
        rows=await _rows(running, record.request_id),
        ms=round(seconds * 1e3, 1),
    )


async def _rows(running: Gateway, request_id: str) -> int:
    async with running.parts.engine.connect() as connection:
        query = text("SELECT COUNT(*) FROM requests WHERE request_id = :id")
        return int((await connection.execute(query, {"id": request_id})).scalar_one())


def _seen(answer: Any) -> tuple[str, bool]:
    """What the client saw, in words; whether it has the whole text, once."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        if "error" in body:
            after = answer.headers.get("retry-after")
            told = f"{answer.status_code} {body['error']['code']}"
            return told + (f", Retry-After {after}" if after else ""), False
        content = body["choices"][0]["message"]["content"]
        return f"{answer.status_code}", content == "".join(WORDS)
    lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    words, told = "", f"{answer.status_code}"
    for chunk in chunks:
        if "error" in chunk:
            return f"{told}, in mid-stream {chunk['error']['code']}", False
        if chunk.get("headgate", {}).get("restart"):
            words, told = "", f"{answer.status_code}, begun again"
        for choice in chunk["choices"]:
            words += choice["delta"].get("content") or ""
    return told, words == "".join(WORDS) and lines[-1] == "[DONE]"


async def recovery(folder: Path) -> dict[str, float]:
    """Seconds from a backend's return to its first answer, by how it had failed.

    refuse: its probes fail, too, and find it when it is back. 500: its probes see nothing; the
    breaker's first pause (1 s) decides.
    """
    found = {}
    for fault in ("refuse", "500"):
        place = folder / fault
        place.mkdir()
        async with upstream() as a:
            listed = [BackendSettings(name="a", kind="openai", model="m", base_urls=[a.url])]
            made = settings(place, *listed, failure=FailureSettings(retries=0))
            (place / "policies" / "test.toml").write_text('[default]\nroute = "a"\n')
            async with gateway(made, {"a": open_backend(listed[0], Address())}) as running:
                assert (await running.chat("well")).status_code == 200
                await a.set(fault)  # type: ignore[arg-type]
                while running.parts.registry.state()["a"]["breaker"] != "open":
                    assert (await running.chat("failing")).status_code >= 500
                await a.set(None)
                began = time.perf_counter()
                while (await running.chat("back?")).status_code != 200:
                    assert time.perf_counter() - began < 20
                    await asyncio.sleep(0.01)
                found[fault] = round(time.perf_counter() - began, 3)
    return found


def plain(rows: list[Row]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]
