"""Policies edited while it runs, keys, budgets, denials: with backends that answer at once."""

import json
import time
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import openai
import pytest

from tests.e2e.serving import Headgate, wait_for

pytestmark = pytest.mark.long

CONFIG = """
[routing]
policy = "house"
policy_dirs = ["policies"]
[cache]
redis = "auto"
[cache.exact]
sampled = true
[[backends]]
name = "a"
kind = "echo"
model = "echo-a"
[backends.price]
input_usd_per_mtok = 1000
output_usd_per_mtok = 1000
[[backends]]
name = "b"
kind = "echo"
model = "echo-b"
[backends.price]
input_usd_per_mtok = 1000
output_usd_per_mtok = 1000
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Headgate]:
    """A gateway over two echo backends, with a policy of its own."""
    (tmp_path / "policies").mkdir()
    _policy(tmp_path, '[default]\nroute = "a"\n')
    running = Headgate(tmp_path, CONFIG).start()
    yield running
    assert running.stop() == 0, running.tail()


def _policy(folder: Path, text: str) -> None:
    (folder / "policies" / "house.toml").write_text(text)


def _ask(
    headgate: Headgate, text: str = "Hi", key: str = "none", **fields: object
) -> dict[str, str]:
    raw = headgate.sdk(api_key=key).chat.completions.with_raw_response.create(  # type: ignore[call-overload]
        model="auto", messages=[{"role": "user", "content": text}], **fields
    )
    return dict(raw.headers)


def test_edited_policy_decides_the_next_request(house: Headgate, tmp_path: Path) -> None:
    """An edit that picks another backend takes effect at once and misses the old cache entry."""
    assert _ask(house)["x-headgate-backend"] == "a"
    wait_for(lambda: _ask(house)["x-headgate-cache"] == "exact", what="an exact hit")
    _policy(tmp_path, '[default]\nroute = "b"\n')
    answer = wait_for(
        lambda: (h := _ask(house, "Hi"))["x-headgate-backend"] == "b" and h, timeout_s=10, what="b"
    )
    assert answer["x-headgate-cache"] in ("miss", "exact")
    rows = house.get("/reports/costs?group_by=backend").json()["rows"]
    assert {row["backend"]: row["cache_hits_exact"] for row in rows}["a"] >= 1


def test_broken_policy_keeps_the_old_one_and_says_so(house: Headgate, tmp_path: Path) -> None:
    """A mistake in an edit is reported in /health with its key, and routing goes on as before."""
    _ask(house)
    _policy(tmp_path, '[default]\nrout = "b"\n')
    assert _ask(house, "Another")["x-headgate-backend"] == "a"
    problems = wait_for(lambda: house.get("/health").json().get("problems"), what="a problem")
    assert "rout" in str(problems)
    assert house.cli("policy", "check", "house", check=False).returncode in (1, 2)
    _policy(tmp_path, '[default]\nroute = "b"\n')
    wait_for(lambda: _ask(house, "Third")["x-headgate-backend"] == "b", timeout_s=10, what="b")
    assert not house.get("/health").json().get("problems")


def test_denial_holds_for_cached_prompts(house: Headgate, tmp_path: Path) -> None:
    """A policy that denies refuses a prompt even when its answer is in the cache."""
    wait_for(lambda: _ask(house)["x-headgate-cache"] == "exact", what="an exact hit")
    _policy(tmp_path, '[default]\ndeny = "closed for today"\n')
    time.sleep(0.3)
    with pytest.raises(openai.PermissionDeniedError, match="closed for today") as caught:
        _ask(house)
    assert caught.value.code == "policy_denied"


def test_budget_is_refused_before_it_is_overspent(tmp_path: Path) -> None:
    """With keys on: no key 401, a spent budget 429 insufficient_quota, others go on."""
    (tmp_path / "policies").mkdir()
    _policy(tmp_path, '[default]\nroute = "a"\n')
    headgate = Headgate(tmp_path, CONFIG + '\n[server]\nauth = "keys"\n').start()
    try:
        with pytest.raises(openai.AuthenticationError):
            _ask(headgate)
        poor = json.loads(headgate.cli("keys", "create", "--team", "poor", "--json").stdout)["key"]
        rich = json.loads(headgate.cli("keys", "create", "--team", "rich", "--json").stdout)["key"]
        headgate.cli(
            "budgets", "set", "--scope", "team:poor", "--limit-usd", "0.05", "--window", "day"
        )
        spent: list[Decimal] = []

        def spend(number: int) -> None:
            headers = _ask(headgate, f"Question {number}", poor, max_tokens=5)
            spent.append(Decimal(headers["x-headgate-cost-usd"]))

        with pytest.raises(openai.RateLimitError) as caught:
            deque(map(spend, range(200)), maxlen=0)
        assert caught.value.code == "insufficient_quota"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert 0 < sum(spent) <= Decimal("0.05")
        assert _ask(headgate, "Question", rich)["x-headgate-backend"] == "a"
        report = json.loads(
            headgate.cli("report", "costs", "--group-by", "team", "--format", "json").stdout
        )
        by_team = {row["team"]: Decimal(row["cost_usd"]) for row in report["rows"]}
        assert by_team["poor"] == sum(spent)
    finally:
        assert headgate.stop() == 0, headgate.tail()
