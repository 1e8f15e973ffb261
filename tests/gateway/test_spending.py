"""Budgets while requests run: streams slice by slice, backends' own budgets, dead processes."""

import asyncio
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.echo import EchoBackend
from gateway.ledger.reservation_log import Held, ReservationLog, take_over
from gateway.processes.recovery import Recovery
from gateway.settings import BackendSettings, PriceSettings, Settings
from gateway.spending import SLICE_TOKENS
from tests.gateway.ledger.samples import charge
from tests.gateway.serving import Gateway, decode, events, gateway, settings, text_of

PRICE = PriceSettings(input_usd_per_mtok=Decimal(0), output_usd_per_mtok=Decimal(1))
"""A word of an answer costs 1000 nano-dollars."""
WORD = 1000


def priced(folder: Path) -> Settings:
    """Two echoes with prices, the second one dearer."""
    dear = PriceSettings(output_usd_per_mtok=Decimal(2))
    return settings(
        folder,
        BackendSettings(name="small", kind="echo", model="e", tier="small", price=PRICE),
        BackendSettings(name="base", kind="echo", model="e", tier="base", price=dear),
    )


async def limit(served: Gateway, nano_usd: int, scope: str = "global", **fields: Any) -> None:
    """Set a lifetime budget."""
    usd = str(Decimal(nano_usd) / 10**9)
    body = {"scope": scope, "window": "lifetime", "limit_usd": usd, **fields}
    answer = await served.client.post("/admin/budgets", json=body)
    assert answer.status_code == 201, answer.text


async def spent(served: Gateway, scope: str = "global") -> tuple[int, int, int]:
    """Spent, reserved, overrun of a budget in nano-dollars, once all is booked."""
    for _ in range(3):
        await served.parts.budgets.sync()
    listed = decode(await served.client.get("/admin/budgets"))["budgets"]
    (shown,) = [budget for budget in listed if budget["scope"] == scope]
    kinds = ("spent_usd", "reserved_usd", "overrun_usd")
    found = [int(Decimal(shown[kind]) * 10**9) for kind in kinds]
    return found[0], found[1], found[2]


def words(count: int) -> str:
    """A prompt that echo answers in so many words."""
    return " ".join(f"w{n}" for n in range(count))


async def test_stream_holds_slices_and_ends_whole(tmp_path: Path) -> None:
    """A long stream under a wide budget is held slice by slice and ends as it would without."""
    async with gateway(priced(tmp_path)) as served:
        await limit(served, 10_000 * WORD)
        answer = await served.chat(words(500), stream=True, max_tokens=900)
        chunks = events(answer)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert "stopped" not in chunks[-1]["headgate"]
        cost = (await served.settled(answer)).request.cost_nano_usd
        assert cost > 3 * SLICE_TOKENS * WORD
        assert await spent(served) == (cost, 0, 0)


async def test_stream_ends_cleanly_where_the_budget_ends(tmp_path: Path) -> None:
    """No room for the next slice: finish_reason "length", a note, [DONE], and no overrun."""
    async with gateway(priced(tmp_path)) as served:
        await limit(served, 300 * WORD)
        answer = await served.chat(words(900), stream=True, max_tokens=1000)
        chunks = events(answer)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["headgate"]["stopped"] == "budget"
        assert 128 <= len(text_of(chunks).split()) <= 300
        settled = await served.settled(answer)
        assert settled.request.outcome == "ok"
        total, reserved, overrun = await spent(served)
        assert (total, reserved, overrun) == (settled.request.cost_nano_usd, 0, 0)
        assert total <= 300 * WORD
        again = await served.chat(words(900), stream=True, max_tokens=1000)
        assert again.status_code == 429
        assert again.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("limit_s", "ends"), [(1000, "stop"), (90, "length")])
async def test_stream_is_held_at_what_the_engine_says_it_costs(
    tmp_path: Path, limit_s: int, ends: str
) -> None:
    """Tokens five times as slow as anybody expected: held as they are, and no overrun."""
    slow_ns = 200_000_000
    engine = BackendSettings(name="small", model="bundled:small", tier="small")
    second = 10**9 * Decimal("0.10") / 3600  # of the built-in machine, in nano-dollars
    made = EchoBackend("small", ns_per_token=slow_ns, token_delay_s=0.001)
    async with gateway(settings(tmp_path, engine), {"small": made}) as served:
        await limit(served, int(limit_s * second))
        answer = await served.chat(words(300), stream=True, max_tokens=1000)
        chunks = events(answer)
        assert chunks[-1]["choices"][0]["finish_reason"] == ends
        assert all("usage" not in chunk for chunk in chunks)
        cost = (await served.settled(answer)).request.cost_nano_usd
        assert await spent(served) == (cost, 0, 0)
        assert 9 * min(limit_s, 120) * second < 10 * cost <= 10 * limit_s * second


async def test_whole_answer_without_a_length_is_capped_at_what_is_held(tmp_path: Path) -> None:
    """Not streamed and no max_tokens: it may not cost more than was reserved for it."""
    async with gateway(priced(tmp_path)) as served:
        await limit(served, 2000 * WORD)
        answer = await served.chat(words(1500), temperature=0, model="small")
        assert decode(answer)["choices"][0]["finish_reason"] == "length"
        assert answer.headers["x-headgate-stopped"] == "budget"
        assert await spent(served) == (1024 * WORD, 0, 0)
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        again = await served.chat(words(1500), temperature=0, max_tokens=10, model="small")
        assert again.headers["x-headgate-cache"] == "miss"


async def test_backend_whose_budget_is_spent_is_not_asked(tmp_path: Path) -> None:
    """model:NAME limits one backend: the next one answers, and only its own charges count."""
    async with gateway(priced(tmp_path)) as served:
        await limit(served, 200 * WORD, "model:small")
        await limit(served, 10_000 * WORD, "model:base")
        first = await served.chat(words(150), max_tokens=200)
        assert first.headers["x-headgate-backend"] == "small"
        second = await served.chat(words(150), max_tokens=200)
        assert second.headers["x-headgate-backend"] == "base"
        of_small = (await served.settled(first)).request.cost_nano_usd
        of_base = (await served.settled(second)).request.cost_nano_usd
        assert await spent(served, "model:small") == (of_small, 0, 0)
        assert await spent(served, "model:base") == (of_base, 0, 0)
        refused = await served.chat(words(150), max_tokens=200, model="small")
        assert decode(refused)["error"]["code"] == "insufficient_quota"


async def test_tags_have_budgets(tmp_path: Path) -> None:
    """tag:NAME=VALUE counts requests with that tag alone."""
    async with gateway(priced(tmp_path)) as served:
        await limit(served, 60 * WORD, "tag:feature=faq")
        tagged = {"x-headgate-tags": "feature=faq"}
        assert (
            await served.chat(words(40), max_tokens=60, model="small", headers=tagged)
        ).status_code == 200
        refused = await served.chat(words(40), max_tokens=60, model="small", headers=tagged)
        assert refused.status_code == 429
        assert (await served.chat(words(40), max_tokens=60)).status_code == 200
        total, _, _ = await spent(served, "tag:feature=faq")
        assert 0 < total <= 60 * WORD


async def test_budget_near_its_end_asks_a_cheaper_policy(tmp_path: Path) -> None:
    """From downgrade_percent on another policy decides, whatever the client asked for."""
    async with gateway(priced(tmp_path)) as served:
        (tmp_path / "policies" / "dear.toml").write_text('[default]\nroute = "base"\n')
        (tmp_path / "policies" / "cheap.toml").write_text('[default]\nroute = "small"\n')
        await limit(served, 1000 * WORD, soft=True, downgrade_percent=50, downgrade_policy="cheap")
        asks = {"x-headgate-policy": "dear"}
        first = await served.chat(words(300), max_tokens=400, headers=asks)
        assert first.headers["x-headgate-backend"] == "base"
        await spent(served)
        second = await served.chat(words(5), headers=asks)
        assert second.headers["x-headgate-backend"] == "small"
        assert second.headers["x-headgate-policy"].startswith("cheap@")
        missing = await served.client.post(
            "/admin/budgets",
            json={
                "scope": "global",
                "limit_usd": "1",
                "downgrade_percent": 50,
                "downgrade_policy": "none",
            },
        )
        assert missing.status_code == 400


async def test_thresholds_are_told_once_and_kept(tmp_path: Path) -> None:
    """A passed threshold stands in /admin/budgets/alerts, once."""
    async with gateway(priced(tmp_path)) as served:
        await limit(served, 100 * WORD, soft=True, alert_percents=[50, 90])
        await served.chat(words(60), max_tokens=80)
        for _ in range(3):
            await served.parts.budgets.sync()
            await served.parts.budgets.refresh()
        found = decode(await served.client.get("/admin/budgets/alerts"))["alerts"]
        assert [(alert["scope"], alert["percent"]) for alert in found] == [("global", 50)]


def _leave_log(folder: Path, *held: Held, owner: str = "dead") -> None:
    """What a killed process left: a log whose writer is gone."""
    log = ReservationLog(folder / "state" / "reservations", owner=owner)
    for one in held:
        log.hold(one)
    os.close(log._descriptor)  # as its end would, without removing the file
    assert log._path is not None
    log._path.rename(log._path.with_name(f"999999999-{owner}-1.reservations"))


async def test_dead_process_s_requests_are_booked_once(tmp_path: Path) -> None:
    """At the backend's usage, else in full; what the ledger has already is left alone."""
    chosen = settings(tmp_path)  # echoes on a machine: our servers, whose usage can be asked
    small = EchoBackend("small")
    async with gateway(chosen, {"small": small, "base": EchoBackend("base")}) as served:
        answered = await served.chat("hello")
        known = answered.headers["x-headgate-request-id"]
        asked = await served.chat("four words it has")
        used = asked.headers["x-headgate-request-id"]
        small._usages["known-to-backend"] = small._usages[used]
        held = Held(
            request_id="",
            nano_usd=777,
            at=served.parts.clock(),
            endpoint="chat/completions",
            model="auto",
            team="search",
            key="key_1",
            tags={"env": "prod"},
            backends=("small", "base"),
        )
        ids = (known, "known-to-backend", "unknown")
        _leave_log(tmp_path, *(msgspec.structs.replace(held, request_id=one) for one in ids))
        recovery = Recovery(served.parts)
        assert await recovery.recover() + await recovery.recover() <= 1
        for _ in range(100):
            if not list((tmp_path / "state" / "reservations").glob("*-dead-*")):
                break
            await asyncio.sleep(0.05)
        known_row = await served.parts.ledger.find(known)
        assert known_row is not None
        assert known_row.request.outcome == "ok"
        metered = await served.parts.ledger.find("known-to-backend")
        assert metered is not None
        assert (metered.request.error_code, metered.request.worker) == ("gateway_died", "dead")
        assert metered.charges[0].completion_tokens > 0
        full = await served.parts.ledger.find("unknown")
        assert full is not None
        assert full.request.cost_nano_usd == 777
        assert full.request.team == "search"


async def test_reservation_log_forgets_what_ended(tmp_path: Path) -> None:
    """Only what is open counts, at its last size; a torn last line and a full file lose nothing."""
    folder = tmp_path / "state" / "reservations"
    log = ReservationLog(folder, owner="me")
    held = Held(
        request_id="",
        nano_usd=1,
        at=0.0,
        endpoint="chat/completions",
        model="auto",
        team="t",
        key="k",
    )
    for number in range(4000):
        log.hold(msgspec.structs.replace(held, request_id=f"r{number}", model="m" * 250))
        if number % 1000:
            log.end(f"r{number}")
    log.more("r3000", 5)
    (path,) = folder.iterdir()
    os.close(log._descriptor)
    with path.open("ab") as file:
        file.write(b'{"request_id":"torn","nano')
    (orphan,) = take_over(folder)
    assert orphan.owner == "me"
    found = {one.request_id: one.nano_usd for one in orphan.open_reservations()}
    assert found == {"r0": 1, "r1000": 1, "r2000": 1, "r3000": 5}
    orphan.remove()
    assert list(folder.iterdir()) == []


async def test_reservation_log_is_tidied_beside_requests(tmp_path: Path) -> None:
    """Who has nothing open any more is soon in no file."""
    folder = tmp_path / "state" / "reservations"
    log = ReservationLog(folder, owner="me")
    held = Held(
        request_id="r0", nano_usd=1, at=0.0, endpoint="completions", model="m", team="t", key="k"
    )
    for name in ("r0", "r1"):
        log.hold(msgspec.structs.replace(held, request_id=name))
    log.end("r0")
    log.tidy()
    (path,) = folder.iterdir()
    assert b"r0" not in path.read_bytes()
    assert b"r1" in path.read_bytes()
    log.end("r1")
    log.tidy()
    assert path.read_bytes() == b""
    log.close()
    assert list(folder.iterdir()) == []


async def test_cost_beyond_the_reservation_stands_under_its_key(tmp_path: Path) -> None:
    """What a request cost more than was held is overrun: apart, by key, and in no other sum."""
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="openai", model="e", base_urls=["http://x/v1"]),
    )
    small = EchoBackend("small", ns_per_token=10**12)  # far dearer than anybody could expect
    async with gateway(chosen, {"small": small}) as served:
        await limit(served, 10**11)
        answer = await served.chat(words(20), max_tokens=30)
        cost = (await served.settled(answer)).request.cost_nano_usd
        total, reserved, overrun = await spent(served)
        assert (total + overrun, reserved) == (cost, 0)
        assert overrun > 0
        listed = decode(await served.client.get("/admin/budgets/overruns"))["overruns"]
        assert [(row["key"], row["requests"]) for row in listed] == [("anonymous", 1)]
        assert Decimal(listed[0]["overrun_usd"]) * 10**9 == overrun
        bad = await served.client.get("/admin/budgets/overruns?since=never")
        assert bad.status_code == 400


@pytest.mark.parametrize(("limit_s", "ends"), [(1000, "stop"), (1.2, "length")])
async def test_stream_of_a_foreign_server_is_held_at_what_its_time_costs(
    tmp_path: Path, limit_s: float, ends: str
) -> None:
    """It is far slower than anybody expected: held as it goes, or ended."""
    foreign = BackendSettings(name="small", kind="openai", model="m", base_urls=["http://x/v1"])
    second = 1e9 * 0.10 / 3600  # of the built-in machine, in nano-dollars
    made = EchoBackend("small", token_delay_s=0.03)
    async with gateway(settings(tmp_path, foreign), {"small": made}) as served:
        await limit(served, int(limit_s * second))
        seen = charge("r", backend="small", machine_ns=4_000_000, completion_tokens=100)
        served.parts.estimator.observe(seen)
        answer = await served.chat(words(60), stream=True, max_tokens=100)
        chunks = events(answer)
        assert chunks[-1]["choices"][0]["finish_reason"] == ends
        cost = (await served.settled(answer)).request.cost_nano_usd
        total, reserved, overrun = await spent(served)
        assert (total + overrun, reserved) == (cost, 0)
        assert total <= limit_s * second
        assert overrun < 0.2 * cost
