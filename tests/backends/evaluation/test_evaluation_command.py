"""The command: what it takes, what it prints, how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.evaluation.__main__ import main
from backends.evaluation.errors import EvaluationError, UsageError
from backends.evaluation.items import read_items
from backends.evaluation.run import read_suites
from backends.evaluation.table import render
from backends.evaluation.targets import Target, open_target, parse_target, parse_targets


@pytest.mark.parametrize(
    ("text", "name", "model", "kind", "base_url"),
    [
        ("nano", "nano", "bundled:nano", "engine", ""),
        ("bundled:small", "small", "bundled:small", "engine", ""),
        ("mine=bundled:small", "mine", "bundled:small", "engine", ""),
        ("/models/good one", "good one", "/models/good one", "engine", ""),
        ("hf:owner/name", "name", "hf:owner/name", "engine", ""),
        ("http://h:1/v1#small", "small", "small", "openai", "http://h:1/v1"),
        ("https://h/api/v1/#a/b", "a/b", "a/b", "openai", "https://h/api/v1"),
        ("http://h:1#m", "m", "m", "openai", "http://h:1/v1"),
        ("x=http://h:1/v1#m=2", "x", "m=2", "openai", "http://h:1/v1"),
    ],
)
def test_targets_are_read_from_a_word(
    text: str, name: str, model: str, kind: str, base_url: str
) -> None:
    """Bundled names, folders and endpoints, each with a name of its own if wanted."""
    target = parse_target(text)
    assert (target.name, target.model, target.kind) == (name, model, kind)
    assert target.base_url == base_url


@pytest.mark.parametrize("text", ["http://h:1/v1", "ftp://h/v1#m", "x=", "{}", '{"name": 1}'])
def test_target_that_is_none_is_refused(text: str) -> None:
    """An endpoint needs its model's name; JSON must be a target."""
    with pytest.raises(UsageError):
        parse_target(text)


def test_two_models_of_one_name_are_refused() -> None:
    """Names tell the columns apart."""
    with pytest.raises(UsageError, match="OTHER=MODEL"):
        parse_targets(["nano", "bundled:nano"])


def test_key_comes_from_a_variable_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key that is not there is named before anything is asked."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    target = Target(name="x", model="m", kind="openai", base_url="http://h/v1")
    for wanting in (
        Target(name="x", model="m", kind="openai", base_url="b", api_key_env="NO_SUCH_KEY"),
        Target(name="x", model="m", kind="openai", base_url="b", api_key_file=str(tmp_path / "k")),
    ):
        with pytest.raises(EvaluationError, match=r"NO_SUCH_KEY|cannot be read"):
            open_target(wanting)
    open_target(target).close()


def run(*arguments: str) -> tuple[int, str]:
    """The command in a process of its own, as the gateway's CLI starts it."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backends.evaluation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    return done.returncode, done.stdout + done.stderr


ECHO = '{"name": "echo", "model": "echo", "kind": "echo"}'


def test_command_prints_json_and_writes_answers_and_outcomes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON in the contract's shape, every raw answer, and one outcome row a question."""
    outputs, outcomes = tmp_path / "outputs.jsonl", tmp_path / "deep" / "outcomes.jsonl"
    arguments = [ECHO, "loud=" + "nano", "--suite", "docs", "--limit", "5", "--json"]
    assert main([*arguments, "--outputs", str(outputs), "--outcomes", str(outcomes)]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in printed["models"]] == ["echo", "loud"]
    assert set(printed["models"][0]) >= {"pass_rate", "by_difficulty", "by_task", "bits_per_byte"}
    answers = [json.loads(line) for line in outputs.read_text().splitlines()]
    assert len(answers) == 10
    assert answers[0]["output"]["text"] == "You said: " + answers[0]["prompt"]
    rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert [row["id"] for row in rows] == [item.id for item in read_items("docs")[:5]]
    assert all(set(row["scores"]) == {"echo", "loud"} for row in rows)
    assert {row["suite"] for row in rows} == {"docs"}
    assert {row["split"] for row in rows} <= {"train", "test"}


def test_table_lines_up_and_carries_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    """A column a model, a line a figure, every share with its interval."""
    other = ECHO.replace('"name": "echo"', '"name": "other"')
    assert main([ECHO, other, "--suite", "tasks", "--limit", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["echo", "other"]
    assert any(line.startswith("other over echo: +0.0 points") for line in lines)
    assert any(line.startswith("pass rate") and "(" in line for line in lines)
    assert any(line.strip().startswith("difficulty 1") for line in lines)
    assert render([]).strip().startswith("pass rate")


def test_own_questions_get_a_pass_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of one's own is a suite like any other."""
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "this", "answer": "You said: this"}\n{"prompt": "a", "answer": "b"}'
    )
    assert main([ECHO, "--suite", str(file), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["pass_rate"] == 0.5


def test_bad_usage_ends_with_2_and_says_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong suite, a bad file, an endpoint without model, cards of a part, a wrong device."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}")
    for arguments, complaint in (
        (["nano", "--suite", "maths"], "no suite 'maths'; allowed: all, lm, tasks, chat, docs"),
        (["nano", "--suite", str(bad)], "line 1"),
        (["http://h/v1"], "then # and the model's name"),
        (["nano", "--suite", "docs", "--cards"], "--cards needs all suites"),
        (["nano", "--suite", "docs", "--device", "abacus"], "abacus"),
        (["nano", "--suite", "docs", "--dtype", "roman"], "roman"),
    ):
        assert main(arguments) == 2, arguments
        assert complaint in capsys.readouterr().err


def test_what_fails_ends_with_1_and_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing model, a cut model, a dead endpoint, a file that cannot be written."""
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_text("{")
    for arguments, complaint in (
        (["no-such-folder", "--suite", "docs"], "'no-such-folder' is no folder"),
        (["bundled:huge", "--suite", "docs"], "no bundled model 'huge'"),
        ([str(cut), "--suite", "docs"], "config.json"),
        (["http://127.0.0.1:9/v1#m", "--suite", "docs"], "is it running?"),
        ([ECHO, "--suite", "docs", "--outputs", "/proc/none/x"], "/proc/none"),
    ):
        assert main(arguments) == 1, arguments
        assert complaint in capsys.readouterr().err


def test_command_runs_as_a_module() -> None:
    """`python -m backends.evaluation` is what the gateway starts."""
    code, text = run(ECHO, "--suite", "docs", "--limit", "2")
    assert code == 0, text
    assert "docs" in text
    assert run()[0] == 2


def test_all_stands_for_every_suite() -> None:
    """`all` is the four suites, once each, however often they are named."""
    suites = read_suites(["all", "docs"])
    assert list(suites.items) == ["tasks", "chat", "docs"]
    assert suites.texts
    assert not suites.is_part
    assert read_suites(["docs"]).is_part
