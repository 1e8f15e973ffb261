"""Whom a command of administration asks; not a command.

The running gateway, as far as our key goes there; where none answers, the database itself.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from gateway.cli.common import api_headers, fail, gateway_url, refusal
from gateway.errors import SettingsError
from gateway.settings import Settings

_TIMEOUT_S = 10.0
_PROBE_S = 2.0


def administrate(
    settings: Settings,
    method: str,
    path: str,
    directly: Callable[[], dict[str, Any]],
    *,
    url: str | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """What the running gateway answers, else what `directly` does without it.

    A gateway that wants a key when we have none is one whose database we work on: who may write
    there needs no key. One that knows our key and refuses is obeyed: exit 1, or 2 for what it
    calls a mistake.

    Args:
        directly: does the same on the stores, and returns the same.
        url: of the gateway; see `gateway_url`.
        parts: of the request: `json`, `params`.
    """
    import httpx

    base = gateway_url(settings, url)
    if not _answers(base):
        if url or os.environ.get("HEADGATE_URL"):
            click.echo(f"headgate: no gateway answers at {base}: asking the database", err=True)
        return directly()
    key = _admin_key(settings)
    try:
        response = httpx.request(
            method, base + path, headers={**key, **_by()}, timeout=_TIMEOUT_S, **parts
        )
        answer = response.json() if response.is_success else {}
    except (httpx.HTTPError, ValueError) as error:
        fail(f"the gateway at {base} has not answered, but may have done it: {error}")
    if response.status_code == 401 and not key and base == gateway_url(settings, None, named=False):
        return directly()
    if not response.is_success:
        lacks = response.status_code in (401, 403)
        hint = " $HEADGATE_ADMIN_KEY says another key." if lacks else ""
        code = 2 if response.status_code == 400 else 1
        fail(f"the gateway at {base} refuses: {refusal(response)}{hint}", code=code)
    return dict(answer)


def _answers(base: str) -> bool:
    """Whether a gateway runs there: secrets are for nobody else who listens."""
    import httpx

    try:
        answer = httpx.get(f"{base}/health/live", timeout=_PROBE_S).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(answer, dict) and answer.get("status") == "live"


def _admin_key(settings: Settings) -> Mapping[str, str]:
    """The operator's own key, where the environment or the configuration has it, else the
    caller's."""
    from gateway.ledger.keys import admin_secret

    try:
        secret = admin_secret(settings)
    except SettingsError:
        secret = None  # it is the gateway's, in another environment
    return {"authorization": f"Bearer {secret}"} if secret else api_headers()


def _by() -> dict[str, str]:
    """For the audit log: a key says less than a name."""
    from gateway.ledger.audit import command_line_actor

    return {"x-headgate-by": command_line_actor().encode("ascii", "replace").decode()}
