"""headgate.toml: found, read, refused with words that help."""

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from gateway.errors import SettingsError
from gateway.settings import BUILT_IN, Settings, check, load, schema

EXAMPLE = Path(__file__).parents[3] / "config.example.toml"


def write(folder: Path, text: str) -> Path:
    file = folder / "headgate.toml"
    file.write_text(text)
    return file


def keys_of(struct: type, prefix: str = "") -> set[str]:
    """Every key path that a settings struct knows."""
    found = set()
    for field in msgspec.structs.fields(struct):
        path = f"{prefix}{field.encode_name}"
        nested = [
            part
            for part in (field.type, *getattr(field.type, "__args__", ()))
            if isinstance(part, type) and issubclass(part, msgspec.Struct)
        ]
        named = getattr(field.type, "__origin__", None) is dict
        found |= keys_of(nested[0], f"{path}.") if nested and not named else {path}
    return found


def paths_of(tree: Any, prefix: str = "") -> set[str]:
    """Every key path that a TOML document sets."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return set().union(*(paths_of(item, prefix) for item in tree))
    free = ("models.", "reports.baseline_machines.", "reports.prices.")
    if isinstance(tree, dict) and prefix not in free:
        return set().union(*(paths_of(value, f"{prefix}{key}.") for key, value in tree.items()))
    return {prefix.rstrip(".")}


def test_example_documents_every_key() -> None:
    """config.example.toml is accepted, and names every key that exists, comments included."""
    settings = load(EXAMPLE, env={})
    assert {backend.kind for backend in settings.backends} == {
        "engine",
        "openai",
        "encoder",
        "echo",
    }
    uncommented = re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    documented = paths_of(tomllib.loads(uncommented))
    assert documented == keys_of(Settings) - {"state_dir", "source"}


def test_built_in_configuration_needs_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    """Without a file the bundled models are served, with both caches on."""
    monkeypatch.chdir(tmp_path)
    settings = load(env={"HEADGATE_STATE_DIR": str(tmp_path)})
    assert [backend.name for backend in settings.backends] == ["nano", "small", "base"]
    assert settings.cache.semantic.enabled
    assert settings.cache.exact.sampled
    assert settings.state_dir == str(tmp_path)


def test_file_is_found_by_argument_environment_and_folder(tmp_path: Path, monkeypatch: Any) -> None:
    """--config wins over $HEADGATE_CONFIG, which wins over ./headgate.toml."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "[server]\nport = 1\n")
    by_env = tmp_path / "env.toml"
    by_env.write_text("[server]\nport = 2\n")
    by_flag = tmp_path / "flag.toml"
    by_flag.write_text("[server]\nport = 3\n")
    assert load(env={}).server.port == 1
    assert load(env={"HEADGATE_CONFIG": str(by_env)}).server.port == 2
    assert load(by_flag, env={"HEADGATE_CONFIG": str(by_env)}).server.port == 3


def test_tables_left_out_keep_their_defaults(tmp_path: Path) -> None:
    """A file with one key changes that key; a backends list replaces the built-in one."""
    settings = load(write(tmp_path, "[server]\nport = 9\n"), env={})
    assert settings.backends == BUILT_IN.backends
    assert settings.cache == Settings().cache
    one = load(write(tmp_path, '[[backends]]\nname = "a"\nkind = "echo"\nmodel = "e"\n'), env={})
    assert [backend.name for backend in one.backends] == ["a"]


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    """HEADGATE_* variables win over the file, and flags over both."""
    file = write(tmp_path, '[server]\nport = 9\n[database]\nurl = "sqlite"\n')
    env = {
        "HEADGATE_PORT": "10",
        "HEADGATE_DATABASE_URL": "postgresql+asyncpg://u@h/d",
        "HEADGATE_REDIS_URL": "redis://h:1",
        "HEADGATE_AUTH": "keys",
        "HEADGATE_HOST": "0.0.0.0",
    }
    settings = load(file, env=env)
    assert (settings.server.port, settings.server.host) == (10, "0.0.0.0")
    assert settings.server.auth == "keys"
    assert settings.database.url == "postgresql+asyncpg://u@h/d"
    assert settings.cache.redis == "redis://h:1"
    assert load(file, env=env, overrides={"port": 11}).server.port == 11


def test_relative_paths_resolve_against_the_file(tmp_path: Path) -> None:
    """Folders of models and policies stand beside the configuration that names them."""
    text = """
        server = { admin_key_file = "k" }
        database = { url = "sqlite+aiosqlite:///l.db" }
        routing = { policy_dirs = ["p"] }
        [[backends]]
        name = "a"
        model = "m/x"
        tokenizer = "bundled:small"
        speculation = { draft_model = "m/y" }
    """
    settings = load(write(tmp_path, text), env={})
    assert settings.server.admin_key_file == str(tmp_path / "k")
    assert settings.database.url == f"sqlite+aiosqlite:///{tmp_path}/l.db"
    assert settings.routing.policy_dirs == [str(tmp_path / "p")]
    assert settings.backends[0].model == str(tmp_path / "m/x")
    assert settings.backends[0].tokenizer == "bundled:small"
    assert settings.backends[0].speculation.draft_model == str(tmp_path / "m/y")


def test_money_is_exact(tmp_path: Path) -> None:
    """A price written as 0.1 is the decimal 0.1, not the nearest binary fraction."""
    text = '[[machines]]\nname = "m"\nusd_per_hour = 0.1\n'
    assert load(write(tmp_path, text), env={}).machines[0].usd_per_hour == Decimal("0.1")


ECHO = '[[backends]]\nname = "a"\nkind = "echo"\nmodel = "e"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1\n", ["server.prot", "unknown key", "did you mean 'port'", "workers"]),
        ("[sever]\nport = 1\n", ["sever", "did you mean 'server'"]),
        (ECHO + "[backends.engine]\nmax_seqs = 1\n", ["[0].engine.max_seqs", "'max_num_seqs'"]),
        ('[[backends]]\nname = "a"\n', ["backends[0].model", "missing"]),
        ('[routing]\npolicy_dirs = "p"\n', ["routing.policy_dirs", "expected list, got string"]),
        ("[server]\ndrain_timeout_s = inf\n", ["server.drain_timeout_s", "inf"]),
        ('[models]\na = "gone"\n', ["models.a", "'gone'", "policy:NAME", "small"]),
        ('[models]\na = "b"\nb = "a"\n', ["models.a", "'b'"]),
        ('[[backends]]\nname = "e"\nmodel = "bundled:x"\n', ["[0].model", "'bundled:nano'"]),
        (
            ECHO.replace('"echo"', '"openai"') + 'base_urls = ["http://u:secret@h/v1"]\n',
            ["backends[0].base_urls", "u:***@h", "api_key_env"],
        ),
        ('[cache]\nredis = "reds://:secret@h"\n', ["cache.redis", "***@h", "redis://"]),
        ("state_dir = '/x'\n", ["state_dir", "HEADGATE_STATE_DIR"]),
        ('[server]\nport = "a"\n', ["server.port", "'a'", "int"]),
        ("[server]\nport = 70000\n", ["server.port", "70000", "65535"]),
        ('[server]\nhost = "0.0.0.0"\n', ["server.host", "0.0.0.0", 'auth = "keys"']),
        ('[server]\nauth = "none"\n', ["server.auth", "'none'", "'keys'", "'open'"]),
        ('[cache]\nredis = "foo"\n', ["cache.redis", "'foo'", "memory"]),
        ('[database]\nurl = "mysql://u:secret@h/d"\n', ["database.url", "postgresql"]),
        ("[cache.semantic]\nthreshold = 2\n", ["cache.semantic.threshold", "2"]),
        (ECHO + ECHO, ["backends[0].name", "'a'", "once"]),
        ('[[backends]]\nname = "A B"\nkind = "echo"\nmodel = "e"\n', ["backends[0].name", "'A B'"]),
        ('[[backends]]\nname = "auto"\nkind = "echo"\nmodel = "e"\n', ["backends[0].name", "auto"]),
        ('[[backends]]\nname = "o"\nkind = "openai"\nmodel = "e"\n', ["backends[0].base_urls"]),
        (ECHO + 'machine = "x"\n', ["backends[0].machine", "'x'", "local"]),
        (ECHO + 'lora_of = "a"\n', ["backends[0].lora_of", "'a'", "for kind engine, one of []"]),
        (
            '[[backends]]\nname = "m"\nmodel = "/m"\n'
            '[[backends]]\nname = "s"\nmodel = "/s"\nlora_of = "s"\n',
            ["backends[1].lora_of", "'s'", "one of ['m']"],
        ),
        (ECHO + "[backends.engine]\nmax_num_seqs = 0\n", ["backends[0].engine.max_num_seqs", "0"]),
        (
            ECHO + "[backends.price]\noutput_usd_per_mtok = -1\n",
            ["price.output_usd_per_mtok", "-1"],
        ),
        ('[[machines]]\nname = "m"\nusd_per_hour = -1\n', ["machines[0].usd_per_hour", "-1"]),
        ("[reports]\nbaseline_machines = { gone = 1 }\n", ["reports.baseline_machines", "gone"]),
        ('[[machines]]\nname = "m"\ndevices = 0\n', ["machines[0].devices", "0"]),
        (
            '[[machines]]\nname = "m"\n[machines.owned]\npurchase_usd = 1\nyears = 0\n',
            ["machines[0].owned.years", "0.01 or more"],
        ),
        (
            '[[machines]]\nname = "m"\n[machines.owned]\npurchase_usd = 1\nyears = 1\npue = 0.5\n',
            ["machines[0].owned.pue", "'0.5'", "1 or more"],
        ),
        (
            '[[machines]]\nname = "m"\nusd_per_hour = 1e30\n',
            ["machines[0].usd_per_hour", "1E+30", "up to 1000000"],
        ),
        (
            '[[machines]]\nname = "m"\n[[machines.hours]]\nfrom = "22:00"\nto = "06:00"\n'
            "days = []\nusd_per_hour = 1\n",
            ["machines[0].hours[0].days", "left out: every day"],
        ),
        (
            '[[machines]]\nname = "m"\n[[machines.hours]]\nfrom = "24:00"\nto = "06:00"\n'
            "usd_per_hour = 1\n",
            ["machines[0].hours[0].from", "24:00", "HH:MM, 00:00 to 23:59"],
        ),
        (
            '[[machines]]\nname = "m"\n[[machines.hours]]\nfrom = "22:00"\nto = "06:00"\n'
            'tz = "Mars/Olympus"\nusd_per_hour = 1\n',
            ["machines[0].hours[0].tz", "Mars/Olympus"],
        ),
        (
            '[[machines]]\nname = "m"\n[[machines.spot]]\nsince = 2026-11-01T00:00:00\n'
            "usd_per_hour = 1\n",
            ["machines[0].spot[0].since", "with an offset"],
        ),
        ('[cache.semantic]\nencoder = "x"\n', ["cache.semantic.encoder", "'x'"]),
        (ECHO + ECHO.replace('"a"', '"t"') + 'tier = "a"\n', ["backends[0].name", "tier"]),
        ("x = ", ["not valid TOML"]),
    ],
)
def test_bad_configuration_is_refused_with_path_value_and_remedy(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    """Each mistake is named by file, key path and value, with what is allowed."""
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(file, env={})
    for word in [str(file), *words]:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "flags", "said_by"),
    [
        ({"HEADGATE_HOST": "0.0.0.0"}, {}, "$HEADGATE_HOST: '0.0.0.0'"),
        ({"HEADGATE_HOST": "::1"}, {"host": "0.0.0.0"}, "--host: '0.0.0.0'"),
        ({"HEADGATE_PORT": "70000"}, {}, "$HEADGATE_PORT: '70000'"),
        ({"HEADGATE_DATABASE_URL": "x://u:secret@h"}, {}, "$HEADGATE_DATABASE_URL: 'x://u:***@h'"),
        ({"HEADGATE_REDIS_URL": "x"}, {}, "$HEADGATE_REDIS_URL: 'x'"),
    ],
)
def test_overrides_are_blamed_by_their_own_name(
    tmp_path: Path, env: dict[str, str], flags: dict[str, Any], said_by: str
) -> None:
    """What a variable or a flag got wrong is not blamed on the file."""
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path, ""), env=env, overrides=flags)
    assert str(caught.value).startswith(said_by)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A named file that does not exist is an error, not the default."""
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path / "none.toml", env={})


def test_schema_accepts_the_example() -> None:
    """The published JSON Schema agrees with the parser about the example."""
    jsonschema.validate(tomllib.loads(EXAMPLE.read_text()), schema())
    check(BUILT_IN, "built-in")
