"""What types alone cannot say of headgate.toml."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from backends.bundled import BUNDLED_MODELS
from gateway.alerts.settings import check_alerts
from gateway.errors import SettingsError
from gateway.settings.prices import check_machine, check_price
from gateway.settings.reports import check_reports
from gateway.settings.tables import BackendSettings, Settings

_RESERVED = {"auto"}
_ASKABLE = {"auto", "minilm"}
"""Models beside the listed ones: the policy's choice, and the encoder that comes with the cache."""
_POLICY = re.compile(r"^policy:.+$")
_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,63}$")
_SQL = re.compile(r"^(sqlite|sqlite\+aiosqlite:///.+|postgresql(\+asyncpg)?://.+)$")
_REDIS = re.compile(r"^(auto|memory|rediss?://.+|unix://.+)$")


def check(settings: Settings, where: str, said_by: Mapping[str, str] | None = None) -> None:
    """What types alone cannot say. Raises SettingsError.

    Args:
        where: the file, for messages.
        said_by: key path → the variable or flag that says something else than the file.
    """

    def refuse(key: str, value: Any, allowed: str) -> None:
        place = (said_by or {}).get(key) or f"{where}: {key}"
        raise SettingsError(f"{place}: {value!r}: {allowed}")

    server = settings.server
    if server.auth == "open" and not _loopback(server.host):
        refuse("server.host", server.host, 'an address beyond loopback needs auth = "keys"')
    for network in server.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            refuse("server.trusted_proxies", network, "an address or CIDR block")
    if not _SQL.match(settings.database.url):
        refuse(
            "database.url",
            shown_url(settings.database.url),
            "sqlite, sqlite+aiosqlite:///path or postgresql+asyncpg://…",
        )
    if not _REDIS.match(settings.cache.redis):
        refuse(
            "cache.redis", shown_url(settings.cache.redis), "auto, memory, redis://… or unix://…"
        )
    machines = [machine.name for machine in settings.machines]
    for index, machine in enumerate(settings.machines):
        if machines.count(machine.name) > 1:
            refuse(f"machines[{index}].name", machine.name, "each name once")
        check_machine(machine, f"machines[{index}]", refuse)
    prices = {backend.name: backend.price for backend in settings.backends}
    check_reports(settings.reports, machines, prices, refuse)
    check_alerts(settings.alerts, where)
    _check_backends(settings, machines, refuse)


def _check_backends(settings: Settings, machines: list[str], refuse: Any) -> None:
    names = [backend.name for backend in settings.backends]
    tiers = {backend.tier for backend in settings.backends if backend.tier}
    for index, backend in enumerate(settings.backends):
        key = f"backends[{index}]"
        if not _NAME.match(backend.name) or backend.name in _RESERVED:
            refuse(f"{key}.name", backend.name, "a-z, 0-9, _ . -, at most 64, not 'auto'")
        if names.count(backend.name) > 1:
            refuse(f"{key}.name", backend.name, "each name once")
        if backend.name in tiers and backend.tier != backend.name:
            refuse(f"{key}.name", backend.name, "a tier's name only for a backend in that tier")
        if backend.kind == "openai" and not backend.base_urls:
            refuse(f"{key}.base_urls", backend.base_urls, "kind openai needs at least one URL")
        if backend.replicas > 1 and backend.kind != "engine":
            refuse(f"{key}.replicas", backend.replicas, "only of kind engine; list base_urls")
        if backend.lora_of is not None:
            _check_adapter(settings, backend, key, refuse)
        for url in backend.base_urls:
            if not re.match(r"^(https?://|unix:/)", url):
                refuse(f"{key}.base_urls", shown_url(url), "http://…, https://… or unix:/path")
            if urlsplit(url).password:
                refuse(f"{key}.base_urls", shown_url(url), "no password; api_key_env keeps it")
        if backend.machine not in (None, "local", *machines):
            known = sorted({"local", *machines})
            refuse(f"{key}.machine", backend.machine, f"one of {known}")
        if backend.kind == "engine":
            _check_bundled(backend.model, f"{key}.model", refuse)
            _check_bundled(backend.speculation.draft_model, f"{key}.speculation", refuse)
        if backend.price is not None:
            check_price(backend.price, f"{key}.price", refuse)
    _check_aliases(settings.models, {*names, *tiers}, refuse)
    encoder = settings.cache.semantic.encoder
    if encoder != "bundled:minilm" and encoder not in names:
        refuse("cache.semantic.encoder", encoder, f"bundled:minilm or a backend of {names}")


def _check_aliases(aliases: Mapping[str, str], models: set[str], refuse: Any) -> None:
    """Every alias ends at something that can be asked."""
    for alias, model in aliases.items():
        seen = {alias}
        while model in aliases and model not in seen:
            seen.add(model)
            model = aliases[model]
        plain = model.removeprefix("backend:")
        if model in seen or not (plain in models or model in _ASKABLE or _POLICY.match(model)):
            known = ", ".join(sorted({*_ASKABLE, *models}))
            refuse(f"models.{alias}", aliases[alias], f"policy:NAME or one of {known}")


def _check_bundled(model: str | None, key: str, refuse: Any) -> None:
    kind, _, name = (model or "").partition(":")
    if kind == "bundled" and name not in BUNDLED_MODELS:
        refuse(key, model, f"one of {[f'bundled:{known}' for known in BUNDLED_MODELS]}")


def _check_adapter(settings: Settings, backend: BackendSettings, key: str, refuse: Any) -> None:
    engines = [b.name for b in settings.backends if b.kind == "engine" and b.lora_of is None]
    if backend.kind != "engine" or backend.lora_of not in engines:
        refuse(f"{key}.lora_of", backend.lora_of, f"for kind engine, one of {engines}")
    if backend.machine != settings.backend(backend.lora_of or "").machine:
        refuse(f"{key}.machine", backend.machine, f"the same as of {backend.lora_of!r}")


def shown_url(url: str) -> str:
    """Of a URL that may hold one; what cannot be told apart from a password goes, too."""
    before, at, rest = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, user = before.rpartition("://")
    name, colon, _ = user.partition(":")
    return f"{scheme}{slashes}{f'{name}:***' if colon else name if slashes else '***'}@{rest}"


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
