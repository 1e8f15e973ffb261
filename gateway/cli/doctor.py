"""`headgate doctor`: what is wrong with this machine."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click
from msgspec import Struct, to_builtins

from gateway.cli.common import (
    config_option,
    json_option,
    own_url,
    print_json,
    settings_of,
)
from gateway.errors import SettingsError
from gateway.settings import Settings


class Finding(Struct, frozen=True):
    """One thing looked at."""

    check: str
    ok: bool
    detail: str


@click.command()
@config_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Look at Python, packages, Redis, database, folders, models and port; exit 1 if any fails."""
    findings = [_python(), _torch()]
    try:
        settings = settings_of(ctx, config)
    except SettingsError as error:
        findings.append(Finding("configuration", False, str(error)))
    else:
        findings.append(Finding("configuration", True, settings.source or "built-in"))
        checks: list[Callable[[Settings], Finding]] = [
            _redis,
            _database,
            _state,
            _run,
            _models,
            _port,
        ]
        findings += [check(settings) for check in checks]
    if as_json:
        print_json({"ok": all(f.ok for f in findings), "findings": to_builtins(findings)})
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.check:14} {finding.detail}")
    ctx.exit(0 if all(finding.ok for finding in findings) else 1)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), f"{version}, 3.11 or newer is needed")


def _torch() -> Finding:
    try:
        return Finding("torch", True, metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return Finding("torch", False, "not installed; local engines need it: pip install torch")


def _redis(settings: Settings) -> Finding:
    if settings.cache.redis != "auto":
        return Finding("redis", True, settings.cache.redis.split("@")[-1])
    from gateway.cache.server import redis_binary

    try:
        return Finding("redis", True, redis_binary())
    except SettingsError as error:
        return Finding("redis", False, str(error))


def _database(settings: Settings) -> Finding:
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.database import without_password
    from gateway.processes.runtime import database_url
    from migrations import runner

    url = database_url(settings)
    shown, parsed = without_password(url), make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return Finding("database", True, f"{shown}, made at the first start")
    try:
        revision = runner.current(url)
    except (SQLAlchemyError, OSError) as error:
        why = str(error).strip() or "no answer in time"
        return Finding("database", False, f"{shown}: {why.splitlines()[0]}")
    return Finding("database", True, f"{shown}, revision {revision or 'none yet'}")


def _state(settings: Settings) -> Finding:
    folder = Path(settings.state_dir)
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Finding("state folder", False, f"{folder}: {existing} is not writable")
    return Finding("state folder", free > 1 << 30, f"{folder}, {free / 2**30:.1f} GiB free")


def _run(settings: Settings) -> Finding:
    from gateway.processes.run_folder import run_folder_path

    folder = run_folder_path(Path(settings.state_dir))
    writable = os.access(folder if folder.exists() else folder.parent, os.W_OK)
    return Finding("socket folder", writable, str(folder))


def _models(settings: Settings) -> Finding:
    for backend in settings.backends:
        if backend.kind != "engine":
            continue
        if backend.model.startswith("bundled:"):
            from backends.bundled import bundled_path

            try:
                bundled_path(backend.model.removeprefix("bundled:"))
            except ValueError as error:
                return Finding("models", False, f"{backend.name}: {error}")
        elif not backend.model.startswith("hf:") and not Path(backend.model).exists():
            return Finding("models", False, f"{backend.name}: {backend.model} does not exist")
    return Finding("models", True, ", ".join(backend.name for backend in settings.backends))


def _port(settings: Settings) -> Finding:
    import socket

    server = settings.server
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            if _answers(settings):
                return Finding("port", True, f"{server.host}:{server.port}: a gateway answers")
            return Finding("port", False, f"{server.host}:{server.port}: {error.strerror}")
    return Finding("port", True, f"{server.host}:{server.port} is free")


def _answers(settings: Settings) -> bool:
    """Whether what has the port is a gateway."""
    import httpx

    try:
        live = httpx.get(f"{own_url(settings)}/health/live", timeout=1.0)
        return bool(live.json() == {"status": "live"})
    except (httpx.HTTPError, ValueError):
        return False
