"""What several commands share: settings, JSON output, talking to a running gateway."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gateway.settings import Settings, load

if TYPE_CHECKING:
    import httpx

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)
url_option: Callable[[Any], Any] = click.option(
    "--url", help="Of the gateway; else $HEADGATE_URL, else from the configuration."
)
config_option: Callable[[Any], Any] = click.option(
    "--config", type=click.Path(dir_okay=False), help="Configuration file."
)


def settings_of(ctx: click.Context, config: str | None = None) -> Settings:
    """The settings that --config (here or before the command) names."""
    return load(config or (ctx.obj or {}).get("config"))


def moment_of(text: str, option: str) -> datetime:
    """An option's date or time; UTC where it names no zone. Raises BadParameter."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no date; give RFC 3339 or YYYY-MM-DD, such as 2026-11-01",
            param_hint=option,
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def log_to_stderr() -> None:
    """Warnings only, until the command ends: standard output is for what was asked.

    Outside of a command (a benchmark) it stays so.

    Called where a command begins to use the gateway's own rooms; the others need no structlog.
    """
    import logging

    import structlog

    before, command = structlog.get_config(), click.get_current_context(silent=True)
    if command is not None:
        command.call_on_close(lambda: structlog.configure(**before))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Say why on stderr and exit: 1 it failed, 2 bad usage or configuration."""
    click.echo(f"headgate: {message}", err=True)
    sys.exit(code)


def run_child(module: str, arguments: Sequence[str]) -> Any:
    """The JSON that `python -m module` prints; its failure, words and exit code become ours."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def gateway_url(settings: Settings, url: str | None, *, named: bool = True) -> str:
    """Where the gateway listens: --url, $HEADGATE_URL, else the one that runs on this state folder
    (its --port may be another), else as the settings say.

    Args:
        named: whether $HEADGATE_URL counts.
    """
    chosen = url or (os.environ.get("HEADGATE_URL") if named else None)
    if chosen:
        return chosen.rstrip("/").removesuffix("/v1")
    return own_url(_running(settings) or settings)


def _running(settings: Settings) -> Settings | None:
    """The settings of the gateway on this state folder; None: there is none that we may know of."""
    import msgspec

    from gateway.processes.run_folder import run_folder_path
    from gateway.processes.runtime import RUNTIME_FILE, Runtime

    try:
        return Runtime.load(run_folder_path(Path(settings.state_dir)) / RUNTIME_FILE).settings
    except (OSError, msgspec.DecodeError):
        return None


def own_url(settings: Settings) -> str:
    """Where a gateway of these settings listens on this machine."""
    host = settings.server.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def api_headers() -> dict[str, str]:
    """$HEADGATE_API_KEY (or $HEADGATE_ADMIN_KEY) as a bearer token."""
    key = os.environ.get("HEADGATE_API_KEY") or os.environ.get("HEADGATE_ADMIN_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def get_json(
    url: str, path: str, *, or_none: bool = False, if_away: Callable[[], Any] | None = None
) -> Any:
    """GET a running gateway's JSON; exits 1 with a clear message when that fails.

    Args:
        or_none: give None where our key may not see it, or the gateway cannot say it now.
        if_away: says it instead where no gateway answers.
    """
    import httpx

    try:
        response = httpx.get(url + path, headers=api_headers(), timeout=10.0)
    except httpx.HTTPError as error:
        if if_away is not None:
            return if_away()
        fail(f"no gateway answers at {url} ({error}); start one with `headgate serve`")
    if or_none and response.status_code in (401, 403, 503):
        return None
    if response.status_code >= 400:
        fail(f"{url}{path}: {response.status_code}: {refusal(response)}")
    try:
        return response.json()
    except ValueError:
        fail(f"{url}{path}: what answers there is no gateway: {response.text[:80]!r}")


def refusal(response: "httpx.Response") -> str:
    """Why a gateway refuses, in its words."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
