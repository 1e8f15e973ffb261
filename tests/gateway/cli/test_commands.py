"""The command line: help everywhere, exit codes, and the commands that need no gateway."""

import json
from pathlib import Path
from socket import socket

import jsonschema
import pytest
import structlog
from click.testing import CliRunner

from gateway.cli import _COMMANDS, cli, main
from gateway.cli.status import _lines, _row
from tests.gateway.cli.test_administration import Answer, listening


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
    assert "did you mean 'serve'?" in CliRunner().invoke(cli, ["serv"]).output


def test_json_stands_alone_on_standard_output(alone: Path) -> None:
    """What is logged on the way goes elsewhere, and logging is afterwards as it was before."""
    before = structlog.get_config()
    asked = ["backends", "drain", "small", "--json", "--url", "http://127.0.0.1:9"]
    result = CliRunner().invoke(cli, asked)
    assert json.loads(result.stdout)["value"] == "drained", result.output
    assert structlog.get_config() == before


def test_config_show_leaves_passwords_out(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the database's nor Redis's is printed."""
    monkeypatch.setenv("HEADGATE_DATABASE_URL", "postgresql+asyncpg://me:secret@h/d")
    monkeypatch.setenv("HEADGATE_REDIS_URL", "redis://:secret@h:1/0")
    shown = CliRunner().invoke(cli, ["config", "show"]).stdout
    assert "secret" not in shown
    assert json.loads(shown)["database"]["url"] == "postgresql+asyncpg://me:***@h/d"


def test_serve_says_what_it_cannot_use(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer, a state folder that cannot be made: one line each."""
    (alone / "headgate.toml").write_text(
        '[cache]\nredis = "memory"\n[[backends]]\nname = "e"\nkind = "echo"\nmodel = "e"\n'
    )
    monkeypatch.setenv("HEADGATE_DATABASE_URL", "postgresql+asyncpg://me:secret@127.0.0.1:9/d")
    refused = CliRunner().invoke(cli, ["serve", "--port", "0"])
    assert refused.exit_code == 1
    assert "the database postgresql+asyncpg://me:***@127.0.0.1:9/d: " in refused.stderr
    monkeypatch.setenv("HEADGATE_STATE_DIR", str(alone / "headgate.toml" / "state"))
    unusable = CliRunner().invoke(cli, ["serve", "--port", "0"])
    assert unusable.exit_code == 2
    assert "set $HEADGATE_STATE_DIR" in unusable.stderr


def test_trouble_with_files_is_one_line(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file system refuses is said without a traceback; exit code 1."""
    (alone / "taken").write_text("")
    with pytest.raises(SystemExit) as left:
        main(["report", "monthly", "2026-01", "--out", str(alone / "taken" / "below.html")])
    assert left.value.code == 1
    empty, line = capsys.readouterr().err.splitlines()
    assert empty == "headgate: global had no request in 2026-01"
    assert line.startswith("headgate: ")
    assert "below.html" in line


def test_status_names_who_fails_over_and_what_changed() -> None:
    """Nobody stands in for a half-open breaker: the next request tries; old news are counted."""
    healthy = {"name": "a", "ready": True, "breaker": "closed"}
    shown = {**healthy, "tier": "t", "load": 0.5, "machine": None}
    assert _row(shown) == ["a", "t", "yes", "50%", "closed", "-"]
    row = _row({**shown, "addresses": 3, "addresses_ejected": 1})
    assert row[4] == "closed, 1 of 3 addresses ejected"
    assert _row({**shown, "breaker": "half_open"})[4] == "half open: the next request tries"
    act = {"at": 0.0, "action": "keys.create", "target": "search", "actor": "cli:me"}
    totals = {"requests": 1, "cost_usd": "0.1", "saved_usd": "0", "errors": 0}
    found = {
        "health": {"overrides": [], "problems": ["ledger: away"]},
        "failing_over": ["a"],
        "today": totals,
        "changes": [act] * 9,
        "alerts": [],
    }
    lines = list(_lines(found))
    assert lines[0] == "failing over: a"
    assert "problem: ledger: away" in lines
    assert lines[3:5] == [
        "changed in 24 h: 9",
        "  1970-01-01T00:00:00Z keys.create search by cli:me",
    ]
    assert len(lines) == 4 + 8 + 1


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
    (alone / "headgate.toml").write_text('[routing]\npolicy = "nobody"\n')
    result = CliRunner().invoke(cli, ["config", "check", "--json"])
    assert "routing.policy: no policy 'nobody'" in json.loads(result.stdout)["error"]
    (alone / "headgate.toml").write_text("")
    assert json.loads(CliRunner().invoke(cli, ["config", "check", "--json"]).stdout)["ok"]


def test_config_check_names_variables_that_are_not_set(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be set where the gateway runs, so nothing is wrong with the file."""
    (alone / "headgate.toml").write_text(
        '[server]\nauth = "keys"\nadmin_key_env = "MY_ADMIN"\n'
        '[[backends]]\nname = "far"\nkind = "openai"\nbase_urls = ["http://far:1/v1"]\n'
        'model = "m"\ntier = "small"\napi_key_env = "FAR_KEY"\n'
    )
    monkeypatch.setenv("FAR_KEY", "k")
    result = CliRunner().invoke(cli, ["config", "check", "--json"])
    assert json.loads(result.stdout)["warnings"] == [
        "server.admin_key_env: $MY_ADMIN is not set here"
    ]
    monkeypatch.delenv("FAR_KEY")
    told = CliRunner().invoke(cli, ["config", "check"])
    assert told.exit_code == 0
    assert "backends[0].api_key_env: $FAR_KEY is not set here" in told.stderr


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


def test_models_pull_says_where_a_model_lies(alone: Path) -> None:
    """By a backend's name or in full; one that does not exist exits 1 with what there is."""
    pulled = CliRunner().invoke(cli, ["models", "pull", "nano", "bundled:nano", "--json"])
    (model,) = json.loads(pulled.stdout)["models"]
    assert model["model"] == "bundled:nano"
    assert model["bytes"] == sum(file.stat().st_size for file in Path(model["folder"]).iterdir())
    assert CliRunner().invoke(cli, ["models", "pull", "bundled:none"]).exit_code == 1


def test_conversation_goes_on_after_a_failed_turn(alone: Path) -> None:
    """What a gateway refuses is said, and the next line is read; --json is for one answer."""
    asked = ["chat", "--url", "http://127.0.0.1:9"]
    spoken = CliRunner().invoke(cli, asked, input="hello\nstill there?\n\n")
    assert spoken.exit_code == 0
    assert spoken.stderr.count("no gateway answers") == 2
    assert CliRunner().invoke(cli, [*asked, "--json"]).exit_code == 2


def test_chat_shows_thoughts_apart_from_the_answer(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, by either name, so that a pipe gets the answer alone; --json has both."""
    deltas = [{"reasoning_content": "hm"}, {"reasoning": "m"}, {"content": "Ye"}, {"content": "s"}]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    monkeypatch.setattr("gateway.cli.chat._events", lambda *_: iter(events))
    spoken = CliRunner().invoke(cli, ["chat", "Hi"])
    assert (spoken.stdout, spoken.stderr) == ("Yes\n", "hmm\n\n")
    told = json.loads(CliRunner().invoke(cli, ["chat", "Hi", "--json"]).stdout)
    assert told == {"answer": "Yes", "thoughts": "hmm", "headgate": {}}
    monkeypatch.setattr("gateway.cli.chat._events", lambda *_: iter(events[2:]))
    told = json.loads(CliRunner().invoke(cli, ["chat", "Hi", "--json"]).stdout)
    assert told == {"answer": "Yes", "headgate": {}}


def test_doctor_finds_what_is_wrong(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy machine passes; a model that is not there, a port that is taken: exit code 1."""
    healthy = CliRunner().invoke(cli, ["doctor", "--json"])
    findings = {f["check"]: f for f in json.loads(healthy.output)["findings"]}
    assert findings["redis"]["ok"]
    assert findings["models"]["ok"]
    (alone / "headgate.toml").write_text('[[backends]]\nname = "x"\nmodel = "nowhere"\n')
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("HEADGATE_PORT", str(other.getsockname()[1]))
        ill = CliRunner().invoke(cli, ["doctor", "--json"])
    assert ill.exit_code == 1
    assert "nowhere" in ill.output
    assert "Address already in use" in ill.output


def test_doctor_asks_the_database(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer fails and is named without its password; a new file is fine."""
    fine = CliRunner().invoke(cli, ["doctor", "--json"])
    found = {f["check"]: f for f in json.loads(fine.output)["findings"]}["database"]
    assert (found["ok"], "made at the first start" in found["detail"]) == (True, True)
    away = "postgresql+asyncpg://me:secret@127.0.0.1:9/headgate"
    monkeypatch.setenv("HEADGATE_DATABASE_URL", away)
    ill = CliRunner().invoke(cli, ["doctor", "--json"])
    found = {f["check"]: f for f in json.loads(ill.output)["findings"]}["database"]
    assert (ill.exit_code, found["ok"]) == (1, False)
    assert found["detail"].startswith("postgresql+asyncpg://me:***@127.0.0.1:9/headgate: ")


def test_status_shows_health_while_the_database_is_away() -> None:
    """What only the database knows is left out; the problem is named, the exit code is 0."""
    health = {
        "status": "degraded",
        "policy": "p@1",
        "backends": [],
        "overrides": [],
        "problems": ["ledger: away"],
    }

    def answer(_method: str, path: str, _headers: dict[str, str], _body: bytes) -> Answer:
        if path == "/health":
            return Answer(200, json.dumps(health).encode())
        return Answer(503, b'{"error": {"message": "The database does not answer."}}')

    with listening(answer) as port:
        told = CliRunner().invoke(cli, ["status", "--url", f"http://127.0.0.1:{port}"])
    assert told.exit_code == 0, told.output
    assert "degraded" in told.output
    assert "problem: ledger: away" in told.output
    assert "today" not in told.output


@pytest.mark.parametrize("command", [["status"], ["explain", "some-id"], ["chat", "Hi"]])
def test_commands_for_a_running_gateway_say_that_none_runs(alone: Path, command: list[str]) -> None:
    """Without a gateway they exit 1 and say how to start one."""
    result = CliRunner().invoke(cli, [*command, "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "headgate serve" in result.output
