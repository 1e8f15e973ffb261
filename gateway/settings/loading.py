"""Settings found, read, completed: a file, $HEADGATE_*, the command line.

`load()` finds the file (argument, $HEADGATE_CONFIG, ./headgate.toml, else the built-in default),
refuses unknown keys and bad values naming file, key path, value and what is allowed, applies the
HEADGATE_* overrides and resolves relative paths against the file's folder.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import SettingsError
from gateway.settings.checks import check
from gateway.settings.litellm_prices import read_rates
from gateway.settings.prices import PriceSettings
from gateway.settings.tables import BUILT_IN, BackendSettings, Settings
from gateway.settings.wording import explain

_SQLITE = "sqlite+aiosqlite:///"


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Find, read and check the configuration.

    Args:
        path: --config; None looks at $HEADGATE_CONFIG, then ./headgate.toml, then built-in.
        env: the environment; None: os.environ.
        overrides: [server] keys from the command line (host, port, workers); None values skip.

    Raises:
        SettingsError: naming file, key path, value and what is allowed.
    """
    env = os.environ if env is None else env
    file = _find(path, env)
    settings = BUILT_IN if file is None else _read(file)
    where = str(file) if file else "the built-in configuration"
    settings, said_by = _override(settings, env, overrides or {})
    base = file.parent.resolve() if file else Path.cwd()
    settings = _resolve(settings, base, _state_dir(env), str(file.resolve()) if file else "")
    check(settings, where, said_by)
    return settings


def _find(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Path | None:
    chosen = path or env.get("HEADGATE_CONFIG")
    if chosen:
        file = Path(chosen)
        if not file.is_file():
            raise SettingsError(f"{file}: no such file; pass an existing one with --config")
        return file
    local = Path("headgate.toml")
    return local if local.is_file() else None


def _read(file: Path) -> Settings:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from None
    for key in ("state_dir", "source"):
        if key in tree:
            raise SettingsError(f"{file}: {key}: unknown key; set $HEADGATE_STATE_DIR instead")
    try:
        return msgspec.convert(tree, Settings, dec_hook=_decimal)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{file}: {explain(str(error), tree)}") from None


def _decimal(kind: type, value: Any) -> Any:
    if kind is Decimal and isinstance(value, int | float):
        return Decimal(str(value))
    raise NotImplementedError(kind)


def _override(
    settings: Settings, env: Mapping[str, str], flags: Mapping[str, Any]
) -> tuple[Settings, dict[str, str]]:
    """What environment and command line say instead, and by key which of them said it."""
    said = {name: (value, f"--{name}") for name, value in flags.items() if value is not None}
    for name, read in (("host", str), ("port", _port), ("auth", _auth)):
        variable = f"HEADGATE_{name.upper()}"
        if env.get(variable):
            said.setdefault(name, (read(env[variable]), f"${variable}"))
    if env.get("HEADGATE_ADMIN_KEY"):
        said.setdefault("admin_key_env", ("HEADGATE_ADMIN_KEY", "$HEADGATE_ADMIN_KEY"))
    replace = msgspec.structs.replace
    changes = {name: value for name, (value, _) in said.items()}
    settings = replace(settings, server=replace(settings.server, **changes))
    said_by = {f"server.{name}": by for name, (_, by) in said.items()}
    if url := env.get("HEADGATE_DATABASE_URL"):
        settings = replace(settings, database=replace(settings.database, url=url))
        said_by["database.url"] = "$HEADGATE_DATABASE_URL"
    if url := env.get("HEADGATE_REDIS_URL"):
        settings = replace(settings, cache=replace(settings.cache, redis=url))
        said_by["cache.redis"] = "$HEADGATE_REDIS_URL"
    return settings, said_by


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise SettingsError(f"$HEADGATE_PORT: {text!r}: a port, 0 to 65535")
    return int(text)


def _auth(text: str) -> str:
    if text not in ("open", "keys"):
        raise SettingsError(f"$HEADGATE_AUTH: {text!r}: open or keys")
    return text


def _state_dir(env: Mapping[str, str]) -> Path:
    if env.get("HEADGATE_STATE_DIR"):
        return Path(env["HEADGATE_STATE_DIR"]).expanduser().absolute()
    home = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "headgate"


def _resolve(settings: Settings, base: Path, state_dir: Path, source: str) -> Settings:
    """Relative paths, against the folder of the config file."""
    replace = msgspec.structs.replace

    def path(text: str) -> str:
        return str(base / Path(text).expanduser())

    def named(model: str) -> str:
        return model if re.match(r"^(bundled|hf):", model) else path(model)

    def backend(one: BackendSettings) -> BackendSettings:
        local, draft = one.kind in ("engine", "encoder"), one.speculation.draft_model
        return replace(
            one,
            model=named(one.model) if local else one.model,
            speculation=replace(one.speculation, draft_model=named(draft) if draft else None),
            tokenizer=named(one.tokenizer) if one.tokenizer else None,
            api_key_file=path(one.api_key_file) if one.api_key_file else None,
            price=_listed_price(one, path),
        )

    server, database = settings.server, settings.database
    admin_key_file = path(server.admin_key_file) if server.admin_key_file else None
    file = database.url.removeprefix(_SQLITE)
    elsewhere = file in (database.url, ":memory:")
    url = database.url if elsewhere else f"{_SQLITE}{path(file)}"
    routing = settings.routing
    dirs = [path(folder) for folder in routing.policy_dirs]
    head = path(routing.head) if routing.head else None
    return replace(
        settings,
        server=replace(server, admin_key_file=admin_key_file),
        database=replace(database, url=url),
        routing=replace(routing, policy_dirs=dirs, head=head),
        backends=[backend(one) for one in settings.backends] or BUILT_IN.backends,
        machines=settings.machines or BUILT_IN.machines,
        state_dir=str(state_dir),
        source=source,
    )


def _listed_price(backend: BackendSettings, path: Callable[[str], str]) -> PriceSettings | None:
    """The price, its rates out of the list that it names."""
    price = backend.price
    if price is None or price.litellm_file is None:
        return price
    file = path(price.litellm_file)
    rates = read_rates(Path(file), price.litellm_model or backend.model)
    if price.batch_service_tier is None:  # we send lines one by one, which costs the usual rates
        no_rates = {"batch_input_usd_per_mtok": None, "batch_output_usd_per_mtok": None}
        rates = msgspec.structs.replace(rates, **no_rates)
    return msgspec.structs.replace(price, **msgspec.structs.asdict(rates), litellm_file=file)
