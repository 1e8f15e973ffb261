"""`headgate policy check|explain|schema`, offline."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli

GOOD = '[[rules]]\nname = "code"\nwhen = { task = ["code"] }\nroute = "small"\nmax_tokens = 9\n'
DEFAULT = '[default]\nroute = "nano"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a policy `mine`, and no configuration but the built-in one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADGATE_CONFIG", raising=False)
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.toml").write_text(GOOD + DEFAULT)
    return tmp_path


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["policy", *arguments], input=text)


def explained(*arguments: str, text: str | None = None) -> dict[str, Any]:
    result = run("explain", "--json", *arguments, text=text)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_check_accepts_a_valid_policy_by_name_and_by_path(folder: Path) -> None:
    """Exit 0 and the policy's ref; without a name the configured policy is checked."""
    for name in ("mine", "policies/mine.toml"):
        result = run("check", name)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "mine.toml: valid (mine@" in result.stdout
        assert ", 1 rules)" in result.stdout
    assert "default.toml: valid (default@" in run("check").stdout


def test_check_names_file_line_and_key_of_each_error(folder: Path) -> None:
    """Exit 1; both mistakes are printed like a compiler's, and again as JSON."""
    file = folder / "bad.toml"
    file.write_text(GOOD + "cascad = ['a']\n" + '[default]\nroute = "nano"\nfallback = []\n')
    result = run("check", "bad.toml", "mine")
    assert result.exit_code == 1
    assert "bad.toml:6: error: rules[0].cascad: unknown key; did you mean" in result.stdout
    assert "bad.toml:9: error: default.fallback: unknown key; did you mean" in result.stdout
    assert "mine.toml: valid" in result.stdout
    data = json.loads(run("check", "bad.toml", "--json").stdout)["policies"][0]
    assert (data["valid"], [p["line"] for p in data["problems"]]) == (False, [6, 9])


def test_check_knows_the_configured_backends(folder: Path) -> None:
    """A route to a tier that the settings do not have is an error."""
    (folder / "policies" / "mine.toml").write_text('[default]\nroute = "huge"\n')
    result = run("check", "mine")
    assert result.exit_code == 1
    assert "'huge': no such tier or backend" in result.stdout
    (folder / "headgate.toml").write_text(
        '[[backends]]\nname = "x"\nkind = "echo"\nmodel = "m"\ntier = "huge"\n'
    )
    assert run("check", "mine").exit_code == 0
    warned = run("check", "default")
    assert warned.exit_code == 0
    assert "warning: rules[0].route: 'base': no such tier or backend" in warned.stdout


@pytest.mark.parametrize("name", ["nope", "nope.toml", "../etc/passwd"])
def test_check_of_a_missing_file_is_bad_usage(folder: Path, name: str) -> None:
    """Exit 2, and where it was looked for."""
    result = run("check", name)
    assert result.exit_code == 2
    assert name in result.stderr


def test_explain_prints_every_rule_and_the_winner(folder: Path) -> None:
    """One decision in words, and the same as JSON; nothing is executed."""
    prompt = "Write a Python function that adds two numbers."
    result = run("explain", "--policy", "mine", prompt)
    assert result.exit_code == 0, result.output
    assert "✓ rule code: task code in [code]" in result.stdout
    assert "max_tokens 9" in result.stdout
    story = explained("--policy", "policies/mine.toml", prompt)
    assert (story["winner"], story["rule"], story["max_tokens"]) == ("small", "code", 9)
    assert explained("--policy", "mine", "hello!")["winner"] == "nano"
    assert story["costs_from"] == "guess"
    assert "costs     guessed" in result.stdout
    assert not (folder / "state").exists(), "nothing is made"


def test_explain_takes_the_facts_of_a_request(folder: Path) -> None:
    """Team, tags, time, budget and model are as given; "-" reads standard input."""
    (folder / "policies" / "mine.toml").write_text(
        '[[rules]]\nname = "night"\nwhen = { hours = { from = "22:00", to = "06:00" } }\n'
        'deny = "closed"\n'
        '[[rules]]\nname = "poor"\nwhen = { team = ["t"], tags = { env = ["prod"] }, '
        "budget_left = { max = 0.5 } }\n" + 'route = "small"\n' + DEFAULT
    )
    noon = ("--policy", "mine", "--at", "2026-03-04T12:00:00+00:00")
    facts = ("--team", "t", "--tag", "env=prod", "--budget-left", "0.2")
    assert explained(*noon, *facts, "-", text="hello")["rule"] == "poor"
    assert explained(*noon, "hello")["rule"] == "default"
    night = explained("--policy", "mine", "--at", "2026-03-04T23:00:00+00:00", "hello")
    assert night["denied"] == "closed"
    assert night["refusal"]["code"] == "policy_denied"
    narrowed = explained(*noon, "--model", "small", "hello")
    assert (narrowed["winner"], narrowed["refusal"]["status"]) == (None, 403)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--model", "nope", "hi"), 1),
        (("--policy", "nope", "hi"), 2),
        (("--tag", "env", "hi"), 2),
        (("--at", "noonish", "hi"), 2),
        (("--budget-left", "7", "hi"), 2),
        ((), 2),
    ],
)
def test_explain_refuses_bad_usage(folder: Path, arguments: tuple[str, ...], code: int) -> None:
    """An unknown model fails (1); an unknown policy or a malformed option is bad usage (2)."""
    result = run("explain", *arguments)
    assert result.exit_code == code
    assert result.stderr


def test_schema_is_a_json_schema_of_the_file(folder: Path) -> None:
    """It accepts a policy's data and refuses an unknown key."""
    result = run("schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.validate({"default": {"route": "nano"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"default": {"route": "nano"}, "rule": []}, schema)
