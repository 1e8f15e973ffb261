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
from gateway.litellm_prices import read_rates
from gateway.price_settings import PriceSettings
from gateway.settings.checks import check
from gateway.settings.tables import BUILT_IN, BackendSettings, Settings


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
    settings = _override(settings, env, overrides or {}, where)
    base = file.parent.resolve() if file else Path.cwd()
    settings = _resolve(settings, base, _state_dir(env), str(file.resolve()) if file else "")
    check(settings, where)
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from None
    for key in ("state_dir", "source"):
        if key in tree:
            raise SettingsError(f"{file}: {key}: unknown key; set $HEADGATE_STATE_DIR instead")
    try:
        return msgspec.convert(tree, Settings, dec_hook=_decimal)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), tree, file)) from None


def _decimal(kind: type, value: Any) -> Any:
    if kind is Decimal and isinstance(value, int | float):
        return Decimal(str(value))
    raise NotImplementedError(kind)


def _explain(text: str, tree: dict[str, Any], file: Path) -> str:
    """msgspec's message with key path first and the offending value."""
    found = re.search(r" - at `\$\.?([^`]*)`$", text)
    path = found.group(1) if found else ""
    reason = text[: found.start()] if found else text
    unknown = re.search(r"unknown field `([^`]+)`", reason)
    if unknown:
        key = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return f"{file}: {key}: unknown key; see config.example.toml for all keys"
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"{file}: {path}: {reason}"
    return f"{file}: {path or 'the file'}: {value!r}: {reason}" if path else f"{file}: {reason}"


def _override(
    settings: Settings, env: Mapping[str, str], server: Mapping[str, Any], where: str
) -> Settings:
    changes: dict[str, Any] = {k: v for k, v in server.items() if v is not None}
    if env.get("HEADGATE_HOST"):
        changes.setdefault("host", env["HEADGATE_HOST"])
    if env.get("HEADGATE_PORT"):
        port = env["HEADGATE_PORT"]
        if not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"$HEADGATE_PORT: {port!r}: a port, 0 to 65535")
        changes.setdefault("port", int(port))
    if env.get("HEADGATE_AUTH"):
        if env["HEADGATE_AUTH"] not in ("open", "keys"):
            raise SettingsError(f"$HEADGATE_AUTH: {env['HEADGATE_AUTH']!r}: open or keys")
        changes.setdefault("auth", env["HEADGATE_AUTH"])
    if env.get("HEADGATE_ADMIN_KEY"):
        changes.setdefault("admin_key_env", "HEADGATE_ADMIN_KEY")
    replace = msgspec.structs.replace
    if changes:
        settings = replace(settings, server=replace(settings.server, **changes))
    if env.get("HEADGATE_DATABASE_URL"):
        url = env["HEADGATE_DATABASE_URL"]
        settings = replace(settings, database=replace(settings.database, url=url))
    if env.get("HEADGATE_REDIS_URL"):
        settings = replace(settings, cache=replace(settings.cache, redis=env["HEADGATE_REDIS_URL"]))
    return settings


def _state_dir(env: Mapping[str, str]) -> Path:
    if env.get("HEADGATE_STATE_DIR"):
        return Path(env["HEADGATE_STATE_DIR"]).absolute()
    home = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "headgate"


def _resolve(settings: Settings, base: Path, state_dir: Path, source: str) -> Settings:
    """Relative paths, against the folder of the config file."""
    replace = msgspec.structs.replace

    def path(text: str) -> str:
        return str(base / Path(text).expanduser())

    def model(backend: BackendSettings) -> BackendSettings:
        local = backend.kind in ("engine", "encoder") and not re.match(
            r"^(bundled|hf):", backend.model
        )
        return replace(
            backend,
            model=path(backend.model) if local else backend.model,
            api_key_file=path(backend.api_key_file) if backend.api_key_file else None,
            price=_listed_price(backend, path),
        )

    routing = settings.routing
    dirs = [path(folder) for folder in routing.policy_dirs]
    head = path(routing.head) if routing.head else None
    return replace(
        settings,
        routing=replace(routing, policy_dirs=dirs, head=head),
        backends=[model(backend) for backend in settings.backends] or BUILT_IN.backends,
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
    return msgspec.structs.replace(price, **msgspec.structs.asdict(rates), litellm_file=file)
