"""kill -9, drains and outages: what clients see, and what the ledger keeps."""

import signal
import threading
import time
from decimal import Decimal
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.e2e.serving import Headgate, wait_for

pytestmark = pytest.mark.long

ENGINE = """
[cache]
redis = "memory"
[cache.exact]
enabled = false
[[backends]]
name = "nano"
model = "bundled:nano"
"""
ECHO = """
[cache]
redis = "auto"
[cache.exact]
sampled = true
[[backends]]
name = "a"
kind = "echo"
model = "echo-a"
"""


def _long(headgate: Headgate, max_tokens: int = 1500) -> openai.Stream[object]:
    return headgate.sdk().chat.completions.create(  # type: ignore[call-overload, no-any-return]
        model="nano",
        messages=[{"role": "user", "content": "Tell me a very long story."}],
        max_tokens=max_tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def test_backend_killed_in_mid_stream(tmp_path: Path) -> None:
    """The client gets an error event, the tokens served are booked, the backend comes back.

    What the engine would have said of its time died with it: that is the machine's lost work.
    """
    headgate = Headgate(tmp_path, ENGINE).start()
    try:
        stream = _long(headgate)
        request_id = stream.response.headers["x-headgate-request-id"]
        for _, _ in zip(range(5), stream, strict=False):
            pass
        for child in headgate.children("backends.server"):
            child.kill()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert "nano" in str(caught.value)
        record = wait_for(lambda: _record(headgate, request_id), what="the row")
        assert record["request"]["outcome"] == "error"
        (charge,) = record["charges"]
        assert charge["completion_tokens"] >= 4
        assert charge["machine_ns"] == 0
        again = wait_for(lambda: _try(headgate), timeout_s=120, what="the backend's return")
        assert again.choices[0].message.content is not None
        wait_for(lambda: _lost_usd(headgate) > 0, what="the lost work")
    finally:
        assert headgate.stop() == 0, headgate.tail()


def _lost_usd(headgate: Headgate) -> Decimal:
    report = httpx.get(f"{headgate.url}/reports/costs", timeout=10).json()
    return Decimal(report["idle_breakdown"]["lost_work"])


def test_disconnected_client_frees_the_engine_and_is_charged(tmp_path: Path) -> None:
    """Closing a stream stops generation, and what was used is booked as cancelled."""
    headgate = Headgate(tmp_path, ENGINE).start()
    try:
        stream = _long(headgate)
        request_id = stream.response.headers["x-headgate-request-id"]
        for _, _ in zip(range(5), stream, strict=False):
            pass
        stream.close()
        record = wait_for(lambda: _record(headgate, request_id), what="the row")
        assert record["request"]["outcome"] == "cancelled"
        (charge,) = record["charges"]
        assert 4 <= charge["completion_tokens"] < 1500
        assert charge["machine_ns"] > 0

        def idle() -> bool:
            return not headgate.get("/health").json()["backends"][0]["load"]

        wait_for(idle, what="an idle engine")
    finally:
        assert headgate.stop() == 0, headgate.tail()


def test_sigterm_lets_running_streams_finish(tmp_path: Path) -> None:
    """During a drain a running stream ends properly and new requests get 503 + Retry-After."""
    headgate = Headgate(tmp_path, ENGINE).start()
    stream = iter(_long(headgate, max_tokens=600))
    next(stream)
    assert headgate.process is not None
    headgate.process.send_signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            response = httpx.post(
                f"{headgate.url}/v1/chat/completions",
                json={"model": "auto", "messages": [{"role": "user", "content": "Hi"}]},
            )
        except httpx.ConnectError:
            return True  # the listener is closed already
        return response.status_code == 503 and "retry-after" in response.headers

    wait_for(refused, timeout_s=20, what="a refusal")
    reasons = [c.choices[0].finish_reason for c in stream if c.choices]  # type: ignore[attr-defined]
    assert reasons[-1] == "length"
    assert headgate.stop() == 0, headgate.tail()


def test_gateway_killed_under_load_loses_no_answered_request(tmp_path: Path) -> None:
    """After kill -9 of the gateway and its return, each answered request is there exactly once."""
    headgate = Headgate(tmp_path, ECHO).start()
    answered: list[str] = []
    stop = threading.Event()

    def load(worker: int) -> None:
        with httpx.Client(base_url=headgate.url, timeout=5) as client:
            number = 0
            while not stop.is_set():
                number += 1
                text = f"worker {worker} question {number}"
                ask = {"model": "auto", "messages": [{"role": "user", "content": text}]}
                try:
                    response = client.post("/v1/chat/completions", json=ask)
                except httpx.HTTPError:
                    time.sleep(0.02)
                    continue
                if response.status_code == 200:
                    answered.append(response.headers["x-headgate-request-id"])

    threads = [threading.Thread(target=load, args=(n,)) for n in range(8)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(2):
            before = len(answered)
            wait_for(lambda before=before: len(answered) > before + 50, 60, "load")  # type: ignore[misc]
            for child in headgate.children("gateway.processes.worker"):
                child.kill()
            served = len(answered)
            wait_for(lambda served=served: len(answered) > served + 50, 30, "more answers")  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        assert len(answered) == len(set(answered))

        def rows() -> int:
            return int(headgate.get("/reports/costs").json()["totals"]["requests"])

        wait_for(lambda: rows() >= len(answered), what="all rows")
        for request_id in answered[:: max(1, len(answered) // 300)]:
            assert _record(headgate, request_id), request_id
    finally:
        stop.set()
        assert headgate.stop() == 0, headgate.tail()
    assert len(answered) <= _rows_in_database(tmp_path, answered)


def test_supervisor_killed_takes_its_children_along_and_starts_again(tmp_path: Path) -> None:
    """After kill -9 no child is left, and the next start works on the same state folder."""
    headgate = Headgate(tmp_path, ENGINE.replace('"memory"', '"auto"')).start()
    assert headgate.process is not None
    children = psutil.Process(headgate.process.pid).children(recursive=True)
    assert len(children) >= 3
    headgate.kill()
    psutil.wait_procs(children, timeout=15)
    assert [child for child in children if child.is_running()] == []
    again = Headgate(tmp_path).start()
    assert again.get("/health/ready").status_code == 200
    assert again.stop() == 0, again.tail()


def test_second_serve_on_the_same_state_folder_is_refused(tmp_path: Path) -> None:
    """The state folder is locked: a second start says who holds it, and exits 1."""
    headgate = Headgate(tmp_path, ECHO).start()
    try:
        second = headgate.cli("serve", "--port", "0", check=False)
        assert second.returncode == 1
        assert str(headgate.process.pid if headgate.process else "") in second.stderr
    finally:
        assert headgate.stop() == 0, headgate.tail()


def test_requests_pass_while_redis_is_gone(tmp_path: Path) -> None:
    """kill -9 of Redis: answers go on uncached, one warning; Redis comes back, so do hits."""
    headgate = Headgate(tmp_path, ECHO).start()
    try:
        wait_for(lambda: _verdict(headgate) == "exact", what="an exact hit")
        (redis,) = headgate.children("redis")
        redis.kill()
        assert _verdict(headgate, "other") == "miss"
        wait_for(lambda: _verdict(headgate) == "exact", what="hits again")
        assert headgate.tail(1_000_000).count("cache_store_lost") == 1
    finally:
        assert headgate.stop() == 0, headgate.tail()


def _record(headgate: Headgate, request_id: str) -> dict[str, dict[str, object]] | None:
    response = headgate.get(f"/requests/{request_id}")
    return response.json() if response.status_code == 200 else None


def _try(headgate: Headgate) -> openai.types.chat.ChatCompletion | None:
    try:
        return headgate.sdk().chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "Hi"}], max_tokens=8
        )
    except openai.APIError:
        return None


def _verdict(headgate: Headgate, text: str = "Hi") -> str:
    raw = headgate.sdk().chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": text}]
    )
    return str(raw.headers["x-headgate-cache"])


def _rows_in_database(folder: Path, answered: list[str]) -> int:
    import sqlite3

    with sqlite3.connect(folder / "state" / "headgate.db") as database:
        rows = [row[0] for row in database.execute("SELECT request_id FROM requests")]
    assert len(rows) == len(set(rows))
    assert not set(answered) - set(rows)
    return len(rows)
