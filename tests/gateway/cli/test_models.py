"""`headgate models`: quality in list and inspect, and eval over what is configured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import cli
from gateway.cli.models import add_costs, answer_cost
from gateway.settings import load

COMMAND = "from gateway.cli import main; main()"
CONFIG = """
[[machines]]
name = "dear"
usd_per_hour = 36.0

[[backends]]
name = "parrot"
kind = "echo"
model = "echo"

[[backends]]
name = "hired"
kind = "openai"
model = "theirs"
base_urls = ["http://127.0.0.1:9/v1"]
[backends.price]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0

[[backends]]
name = "mine"
model = "bundled:nano"
machine = "dear"

[[backends]]
name = "vectors"
kind = "encoder"
model = "bundled:minilm"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a configuration of four backends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("HEADGATE_CONFIG", raising=False)
    (tmp_path / "headgate.toml").write_text(CONFIG)
    return tmp_path


def test_list_and_inspect_show_the_measured_quality(folder: Path) -> None:
    """A model that was measured carries its pass rate and its table, another one none."""
    listed = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).output)["models"]
    rates = {model["name"]: model["pass_rate"] for model in listed}
    assert rates["parrot"] is None
    assert 0.1 < rates["mine"] < 0.9
    shown = CliRunner().invoke(cli, ["models", "inspect", "bundled:nano"]).output
    assert "pass rate" in shown
    assert "difficulty 1" in shown
    facts = json.loads(
        CliRunner().invoke(cli, ["models", "inspect", "bundled:nano", "--json"]).output
    )
    assert facts["evaluation"]["pass_rate"] == rates["mine"]


def evaluate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`headgate models eval` as a user types it."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "models", "eval", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_eval_measures_configured_backends_at_their_prices(folder: Path) -> None:
    """Backends are known by name; outcomes carry dollars by the configuration's prices."""
    wanted = ("parrot", "mine", "--suite", "docs", "--limit", "3", "--json")
    done = evaluate(folder, *wanted, "--outcomes", "o.jsonl")
    assert done.returncode == 0, done.stderr
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["parrot", "mine"]
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert row["cost_usd"]["parrot"] == 0
        assert row["cost_usd"]["mine"] == pytest.approx(row["machine_ns"]["mine"] / 1e11, abs=1e-9)


def test_outcome_costs_follow_from_tokens_where_tokens_are_priced(folder: Path) -> None:
    """A backend with prices of its own costs what its tokens cost; an unknown one machine time."""
    settings = load(None)
    named = {backend.name: backend for backend in settings.backends}
    row: dict[str, Any] = {
        "scores": {"hired": 1.0, "stranger": 1.0},
        "prompt_tokens": {"hired": 1000, "stranger": 1},
        "completion_tokens": {"hired": 500, "stranger": 1},
        "machine_ns": {"stranger": 3_600_000_000},
    }
    assert answer_cost(settings, named["hired"], row, "hired") == 0.002
    file = folder / "o.jsonl"
    file.write_text(json.dumps(row) + "\n")
    add_costs(file, settings, named)
    assert json.loads(file.read_text())["cost_usd"] == {"hired": 0.002, "stranger": 0.0001}


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("vectors",), 2, "encoder"),
        (("hired", "--suite", "docs"), 1, "is it running?"),
        (("nobody", "--suite", "docs"), 1, "'nobody' is no folder"),
        (("parrot", "--suite", "poems"), 2, "no suite 'poems'"),
        (("--suite", "docs"), 2, "MODEL"),
    ],
)
def test_eval_ends_with_a_reason(
    folder: Path, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    """Exit 2 for bad usage, 1 where the model fails, and nothing is written."""
    done = evaluate(folder, *arguments, "--outcomes", "o.jsonl")
    assert done.returncode == code, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "o.jsonl").exists()


def test_eval_explains_itself(folder: Path) -> None:
    """--help lists the suites and the options."""
    done = evaluate(folder, "--help")
    assert done.returncode == 0
    for word in ("--suite", "--outputs", "--outcomes", "--json", "URL#MODEL"):
        assert word in done.stdout
