"""The command line: help everywhere, exit codes, and the commands that need no gateway."""

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from gateway.cli import _COMMANDS, cli, main


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as working and state folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("HEADGATE_CONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "command", [c for c in _COMMANDS if c not in ("backend", "bench", "quantize")]
)
def test_every_command_has_help(command: str) -> None:
    """`headgate COMMAND --help` explains itself."""
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.output
    assert len(result.output.splitlines()) > 4


def test_unknown_command_and_option_are_usage_errors() -> None:
    """Bad usage exits 2 and says what it did not know."""
    for arguments in (["frobnicate"], ["config", "check", "--frobnicate"]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2
        assert "frobnicate" in result.output


def test_config_check_says_what_is_wrong(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad file exits 2 with file, key and value; --json gives the same as data."""
    (alone / "headgate.toml").write_text("[server]\nport = -1\n")
    with pytest.raises(SystemExit) as caught:
        main(["config", "check"])
    assert caught.value.code == 2
    assert "server.port" in capsys.readouterr().err
    result = CliRunner().invoke(cli, ["config", "check", "--json"])
    assert result.exit_code == 2
    assert "server.port" in json.loads(result.output)["error"]


def test_config_commands_print_json(alone: Path) -> None:
    """show prints every setting in force, schema a JSON Schema that accepts TOML's types."""
    shown = json.loads(CliRunner().invoke(cli, ["config", "show"]).output)
    assert [backend["name"] for backend in shown["backends"]] == ["nano", "small", "base"]
    schema = json.loads(CliRunner().invoke(cli, ["config", "schema"]).output)
    jsonschema.validate({"server": {"port": 80}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"server": {"port": "80"}}, schema)


def test_models_commands_describe_the_bundled_models(alone: Path) -> None:
    """list names what is configured; inspect reads sizes and revision from the files."""
    listed = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).output)
    assert [model["name"] for model in listed["models"]] == ["nano", "small", "base"]
    facts = json.loads(
        CliRunner().invoke(cli, ["models", "inspect", "bundled:nano", "--json"]).output
    )
    assert facts["architecture"] == "LlamaForCausalLM"
    assert 500_000 < facts["parameters"] < 2_000_000
    missing = CliRunner().invoke(cli, ["models", "inspect", "bundled:none"])
    assert missing.exit_code == 1
    assert "bundled:none" in missing.output or "'none'" in missing.output


def test_doctor_finds_what_is_wrong(alone: Path) -> None:
    """A healthy machine passes; a model that is not there fails with its name and exit code 1."""
    healthy = CliRunner().invoke(cli, ["doctor", "--json"])
    findings = {f["check"]: f for f in json.loads(healthy.output)["findings"]}
    assert findings["redis"]["ok"]
    assert findings["models"]["ok"]
    (alone / "headgate.toml").write_text('[[backends]]\nname = "x"\nmodel = "nowhere"\n')
    ill = CliRunner().invoke(cli, ["doctor", "--json"])
    assert ill.exit_code == 1
    assert "nowhere" in ill.output


@pytest.mark.parametrize("command", [["status"], ["explain", "some-id"], ["chat", "Hi"]])
def test_commands_for_a_running_gateway_say_that_none_runs(alone: Path, command: list[str]) -> None:
    """Without a gateway they exit 1 and say how to start one."""
    result = CliRunner().invoke(cli, [*command, "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "headgate serve" in result.output
