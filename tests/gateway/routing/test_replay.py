"""Replaying the past: faithful, priced, and honest about quality."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from gateway.cli import cli
from gateway.ledger.pricing import CostEstimator
from gateway.ledger.records import DecidedOn
from gateway.routing.columns import NOBODY, decide_all
from gateway.routing.past import Past, read_past, table_of
from gateway.routing.policy_book import LoadedPolicy, PolicyBook
from gateway.routing.replay import decide_in_time, doubly_robust, replay
from gateway.routing.simulate import PromptsError, read_prompts
from gateway.settings import BackendSettings, PriceSettings, RoutingSettings, Settings
from policies.model import BackendCard
from tests.gateway.serving import gateway, settings

SPLIT = """
[[rules]]
name = "code"
when = { task = ["code"] }
route = "base"
fallbacks = ["small"]

[default]
split = { small = 0.5, base = 0.5 }
"""
TO_BASE = '[default]\nroute = "base"\nfallbacks = ["small"]\n'
CARDS = {n: BackendCard(name=n, tier=n, model="m") for n in ("small", "base")}
PRICED = Settings(
    backends=[
        BackendSettings(
            name=name,
            kind="openai",
            model="m",
            tier=name,
            base_urls=["http://x/v1"],
            price=PriceSettings(input_usd_per_mtok=usd, output_usd_per_mtok=usd * 2),
        )
        for name, usd in (("small", 1), ("base", 10))
    ]
)


def policy(tmp_path: Path, text: str, name: str = "other") -> LoadedPolicy:
    (tmp_path / f"{name}.toml").write_text(text)
    return PolicyBook(RoutingSettings(policy=name, policy_dirs=[str(tmp_path)])).get()


def past(size: int, *, seed: int = 0, chance: float = 1.0, **changes: Any) -> Past:
    """Requests that small or base answered by chance; base is right more often on hard ones."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(size)
    base = rng.random(size) < 0.3
    right = np.where(base, 0.9 - 0.1 * difficulty, 0.9 - 0.7 * difficulty)
    names = ["base" if one else "small" for one in base]
    columns: dict[str, Any] = {
        "request_id": [str(index) for index in range(size)],
        **{n: ["x"] * size for n in ("key", "team", "model")},
        "endpoint": ["chat/completions"] * size,
        "language": ["en"] * size,
        "user": [None] * size,
        "task": ["chat"] * size,
        "tags": [()] * size,
        "outcome": ["ok"] * size,
        "cache": ["miss"] * size,
        "policy": ["p"] * size,
        "started_us": [index * 60_000_000 for index in range(size)],
        "difficulty": difficulty.tolist(),
        "prompt_tokens_estimate": [100] * size,
        "turns": [1] * size,
        "backend": names,
        "first": names,
        "prompt_tokens": [100] * size,
        "cached_prompt_tokens": [0] * size,
        "completion_tokens": [50] * size,
        "duration_ms": [100.0] * size,
        "draw": rng.random(size).tolist(),
        "probability": [chance * (0.3 if one else 0.7) + (1 - chance) for one in base],
        "cost_nano_usd": [1000] * size,
        # a head that is off: the correction has something to correct
        "decided_on": [DecidedOn(quality={"small": 0.5, "base": 0.5})] * size,
    }
    return Past(
        columns=columns | changes,
        names={},
        rewards=(rng.random(size) < right).astype(float),
        rates=(),
        skipped=0,
    )


def test_doubly_robust_estimates_cover_the_truth(tmp_path: Path) -> None:
    """All to base is right in 0.85 of the cases: nearly all intervals hold that."""
    other = policy(tmp_path, TO_BASE)
    held = 0
    for seed in range(40):
        found = past(600, seed=seed)
        table = table_of(found, CARDS, CostEstimator(PRICED))
        first = np.array([1 if name == "base" else 0 for name in found.columns["first"]])
        decided = decide_all(other.policy, table)
        estimate, why = doubly_robust(found, table, decided, first, decided.winner)
        assert estimate is not None
        assert why is None
        assert estimate.effective_sample_size == pytest.approx((first == 1).sum())
        assert abs(estimate.value - 0.85) < 0.2
        held += estimate.low <= 0.85 <= estimate.high
        assert 0 <= estimate.low <= estimate.high <= 1, "scores are"
    assert held >= 35


def test_without_chance_or_opinions_there_is_no_quality_figure(tmp_path: Path) -> None:
    """A deterministic past cannot say what the other backend would have answered, and says so."""
    other = policy(tmp_path, TO_BASE)
    estimator = CostEstimator(PRICED)
    fixed = past(200, probability=[1.0] * 200)
    (report,) = replay(fixed, [other], CARDS, estimator)["policies"]
    assert report["quality"] is None
    assert "left nothing to chance" in report["quality_why"]
    silent = past(200)
    silent.rewards[:] = np.nan
    (report,) = replay(silent, [other], CARDS, estimator)["policies"]
    assert report["quality_why"] == "0 answers have feedback; at least 30 are needed"
    always = past(200, first=["base"] * 200, backend=["base"] * 200, probability=[1.0] * 200)
    (report,) = replay(always, [other], CARDS, estimator)["policies"]
    assert report["quality"]["value"] == pytest.approx(np.mean(always.rewards), abs=1e-4)


def test_costs_are_booked_where_the_choice_is_the_same_and_priced_elsewhere(tmp_path: Path) -> None:
    """Base costs ten times small at the same tokens: 100 in at $10/M, 50 out at $20/M."""
    found = past(100)
    (report,) = replay(found, [policy(tmp_path, TO_BASE)], CARDS, CostEstimator(PRICED))["policies"]
    same = sum(name == "base" for name in found.columns["backend"])
    nano = same * 1000 + (100 - same) * (100 * 10_000 + 50 * 20_000)
    assert report["cost_usd"] == f"{nano / 1e9:.9f}".rstrip("0")
    assert report["same_choice"] == same / 100
    assert report["shares"] == {"small": 0.0, "base": 1.0}


def test_a_days_money_is_paced_in_order(tmp_path: Path) -> None:
    """With money for about half, the dear backend stops being taken before the day is over."""
    text = '[default]\nobjective = { maximise = "quality", max_cost_usd = 1.0, per = "day" }\n'
    size = 1440
    found = past(size, decided_on=[DecidedOn(quality={"small": 0.4, "base": 0.9})] * size)
    table = table_of(found, CARDS, CostEstimator(PRICED))
    winner = decide_in_time(policy(tmp_path, text), table).winner
    spent = table.costs[np.arange(size), winner].sum() / 1e9
    assert 0 < (winner == 1).sum() < size
    assert NOBODY not in winner
    assert spent < 2.0


async def test_a_replay_of_the_same_policy_repeats_every_decision(tmp_path: Path) -> None:
    """What was recorded is enough: rule and first choice come out as they were, drawn arms too."""
    chosen = settings(tmp_path)
    text = (
        SPLIT + '\n[[rules]]\nname = "tagged"\nwhen = { tags = { env = ["prod"] } }\ndeny = "no"\n'
    )
    (tmp_path / "policies" / "test.toml").write_text(text)
    async with gateway(chosen) as served:
        for index in range(40):
            prompt = "Write a Python function." if index % 4 == 0 else f"Tell me of day {index}"
            tags = {"x-headgate-tags": "env=prod"} if index % 10 == 5 else {}
            headers = {"x-headgate-cache": "off", **tags}
            await served.chat(f"{prompt} {index}", user=f"u{index}", headers=headers)
        assert await served.parts.ledger.flush()
        async with served.parts.engine.connect() as connection:
            found = await read_past(connection, since_us=0, until_us=1 << 62)
        assert len(found) == 40
        cards = served.parts.registry.cards()
        table = table_of(found, cards, CostEstimator(chosen))
        loaded = served.parts.book.get()
        again = decide_all(loaded.policy, table)
        names = list(cards)
        firsts = [NOBODY if one is None else names.index(one) for one in found.columns["first"]]
        assert again.winner.tolist() == firsts
        assert len({*firsts}) == 3
        denied = [outcome == "denied" for outcome in found.columns["outcome"]]
        assert again.denied.tolist() == denied
        assert again.probability == pytest.approx(found.columns["probability"])


async def test_the_commands_print_tables_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`policy replay` reads the ledger, `policy simulate` a file; both compare side by side."""
    import asyncio

    chosen = settings(tmp_path)
    chosen = replace(chosen, routing=replace(chosen.routing, explore=0.4))
    async with gateway(chosen) as served:
        for index in range(80):
            answer = await served.chat(f"question {index}", headers={"x-headgate-cache": "off"})
            score = int(answer.headers["x-headgate-backend"] == "base")
            body = {"request_id": answer.headers["x-headgate-request-id"], "score": score}
            assert (await served.client.post("/feedback", json=body)).status_code == 200
        assert await served.parts.ledger.flush()
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headgate.toml").write_text(
        '[routing]\npolicy = "test"\n'
        '[[backends]]\nname = "small"\nkind = "echo"\nmodel = "s"\ntier = "small"\n'
        '[[backends]]\nname = "base"\nkind = "echo"\nmodel = "b"\ntier = "base"\n'
    )
    (tmp_path / "policies" / "other.toml").write_text(TO_BASE)
    command = ["policy", "replay", "--since", "2020-01-01", "--policy", "other", "--policy", "test"]

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    report = json.loads(await asyncio.to_thread(run, *command, "--json"))
    assert (report["replayed"], report["skipped"]) == (80, 0)
    other, same = report["policies"]
    assert other["shares"]["base"] == 1.0
    assert other["quality"]["low"] > same["quality"]["high"]  # though each had answered some
    assert same["same_choice"] > 0.6
    assert "80 requests replayed" in await asyncio.to_thread(run, *command)
    later = await asyncio.to_thread(run, *command, "--since", "2100-01-01")
    assert "0 requests replayed" in later
    assert "%" not in later, "of no requests there are no shares"
    whole = json.loads(await asyncio.to_thread(run, "policy", "replay", "--json"))
    assert (whole["since"], whole["replayed"]) == (None, 80)
    assert [one["policy"].partition("@")[0] for one in whole["policies"]] == ["test"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('plain words\n{"prompt": "2 + 2 = ?", "scores": {"small": 1, "base": 1}}\n')
    command = ["policy", "simulate", str(prompts), "--policy", "other", "--policy", "test"]
    found = json.loads(await asyncio.to_thread(run, *command, "--json"))
    assert [one["shares"] for one in found["policies"]] == [{"base": 1.0}, {"small": 1.0}]
    assert found["policies"][0]["mean_latency_s"] is not None
    assert "2 prompts" in await asyncio.to_thread(run, *command)
    found = json.loads(await asyncio.to_thread(run, "policy", "simulate", str(prompts), "--json"))
    assert [one["shares"] for one in found["policies"]] == [{"small": 1.0}]
    story = json.loads(await asyncio.to_thread(run, "policy", "explain", "plain words", "--json"))
    assert story["costs_from"] == "ledger"
    assert story["candidates"][0]["latency_s"] is not None


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.jsonl.gz", "p.csv", "p.csv.gz"])
def test_prompts_are_read_from_any_file(tmp_path: Path, name: str) -> None:
    """Lines, JSON Lines and rows of a spreadsheet say the same, compressed or not."""
    text = {
        "txt": "one\n\ntwo\n",
        "jsonl": '{"prompt": "one"}\n{"prompt": "two"}\n',
        "csv": "topic,prompt\na,one\nb,two\n",
    }[name.removesuffix(".gz").rpartition(".")[2]]
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = read_prompts(tmp_path / name)
    assert [prompt.request.messages[0].content for prompt in found] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.csv", b"question\nx\n", "row 1: no column is called prompt"),
        ("p.csv", b"prompt,a\nx,1\n,0\n", "row 3, column 'prompt': it is empty"),
        ("p.jsonl.gz", b"plain", "Not a gzipped file"),
        ("p.txt", b"\n", "no prompts"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    """File, row and what is wrong."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PromptsError, match=words):
        read_prompts(tmp_path / name)


def test_bad_usage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown policy, a bad time and a bad file exit 2, with words."""
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"nothing": 1}\n')
    for arguments, words in (
        (["replay", "--since", "2020-01-01", "--policy", "nobody"], "no policy 'nobody'"),
        (["replay", "--since", "noonish", "--policy", "default"], "'noonish' is no date"),
        (["explain", "hi", "--at", "noonish"], "'noonish' is no date"),
        (["simulate", "bad.jsonl", "--policy", "default"], "bad.jsonl:1: neither prompt"),
        (["simulate", "gone.jsonl", "--policy", "default"], "gone.jsonl"),
    ):
        result = CliRunner().invoke(cli, ["policy", *arguments])
        assert result.exit_code == 2, result.output
        assert words in result.output
