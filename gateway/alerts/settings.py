"""[alerts]: what is watched, how strictly, and who is told."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct, field

from gateway.errors import SettingsError

_Seconds = Annotated[float, Meta(gt=0)]
_Share = Annotated[float, Meta(gt=0, lt=1)]
_Time = Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]

Kind = Literal[
    "budget",
    "budget_forecast",
    "anomaly",
    "error_rate",
    "slo_burn",
    "ledger_outage",
    "cache_outage",
    "unattributed",
]
"""What alerts are about."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: immutable, unknown keys refused."""


class QuietSettings(_Table, frozen=True, kw_only=True, rename={"since": "from", "until": "to"}):
    """[alerts.channels.quiet]: what is not critical waits until they end."""

    since: _Time
    until: _Time
    """Before `from`: of the next day."""
    tz: str = "UTC"


class ChannelSettings(_Table, frozen=True, kw_only=True):
    """[[alerts.channels]]: somebody who is told."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    kind: Literal["webhook", "slack", "mail"]
    kinds: list[Kind] | None = None
    """Of alerts; None: all."""
    monthly: list[str] = field(default_factory=list)
    """Whose monthly reports go here, when [reports.monthly] says: global (all teams together),
    team:NAME, team:* (each team by itself)."""
    quiet: QuietSettings | None = None
    url: str | None = None
    """Of a webhook; where it is a secret, as Slack's are, url_env keeps it out of the file."""
    url_env: str | None = None
    secret_env: str | None = None
    """Signs webhooks: https://www.standardwebhooks.com, HMAC-SHA256."""
    smtp: str | None = None
    """host:port of a mail server."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password_env: str | None = None
    sender: str | None = None
    to: list[str] = field(default_factory=list)

    @property
    def address(self) -> str | None:
        """The webhook's; None: the environment lacks it."""
        return os.environ.get(self.url_env) if self.url_env else self.url

    @property
    def secret(self) -> str | None:
        """Signs webhooks; None: they go unsigned."""
        return os.environ.get(self.secret_env) if self.secret_env else None

    @property
    def password(self) -> str:
        """Of the mail server."""
        return os.environ.get(self.password_env, "") if self.password_env else ""


class AlertSettings(_Table, frozen=True, kw_only=True):
    """[alerts]"""

    channels: list[ChannelSettings] = field(default_factory=list)
    """Without any, alerts stand in the log, the command line and the dashboard only."""
    every_s: _Seconds = 30.0
    """Between two looks."""
    error_rate: _Share | None = 0.1
    """Of the last five minutes' requests, if there were at least 20; None: not watched."""
    availability: _Share | None = 0.995
    """Share of requests that must not fail for our reasons (5xx); None: no such objective."""
    ttft_ms: _Seconds | None = None
    """Latency objective: so soon the first token must be there …"""
    ttft_share: _Share = 0.95
    """… for this share of requests."""
    anomalies: bool = True
    forecasts: bool = True
    unattributed: _Share | None = 0.05
    """Share of a machine's cost in an hour that no charge explains; None: not watched."""


def check_alerts(alerts: AlertSettings, where: str) -> None:
    """Raises SettingsError for a channel that could never deliver."""
    names: set[str] = set()
    for channel in alerts.channels:
        key = f"{where}: alerts.channels {channel.name!r}"
        if channel.name in names:
            raise SettingsError(f"{key}: there are two of this name")
        names.add(channel.name)
        for scope in channel.monthly:
            if scope != "global" and not re.match(r"^team:.+$", scope):
                raise SettingsError(
                    f"{key}: monthly {scope!r}; allowed: global, team:NAME or team:*"
                )
        if channel.quiet is not None:
            _check_zone(channel.quiet.tz, key)
            if channel.quiet.since == channel.quiet.until:
                raise SettingsError(f"{key}: quiet from and to are the same: it would never speak")
        if channel.kind == "mail":
            _check_mail(channel, key)
        elif bool(channel.url) == bool(channel.url_env):
            raise SettingsError(f"{key}: url or url_env; a {channel.kind} needs one of them")
        elif channel.url and not channel.url.startswith(("http://", "https://")):
            raise SettingsError(f"{key}: url {channel.url!r}; allowed: http://… or https://…")
        for name in ("url_env", "secret_env", "password_env"):
            variable = getattr(channel, name)
            if variable and not os.environ.get(variable):
                raise SettingsError(f"{key}: {name}: ${variable} is not set")


def _check_mail(channel: ChannelSettings, key: str) -> None:
    host, _, port = (channel.smtp or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingsError(
            f"{key}: smtp {channel.smtp!r}; give host:port, as mail.example.com:587"
        )
    if not channel.sender or not channel.to:
        raise SettingsError(f"{key}: sender and to; mail needs both")
    for address in (channel.sender, *channel.to):
        if "@" not in address or not address.isprintable():
            raise SettingsError(f"{key}: {address!r} is no mail address")


def _check_zone(tz: str, key: str) -> None:
    if not tz or Path(tz).is_absolute():
        raise SettingsError(f"{key}: quiet.tz {tz!r}; give an IANA name such as Europe/Berlin")
    try:
        ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise SettingsError(
            f"{key}: quiet.tz {tz!r}; give an IANA name such as Europe/Berlin"
        ) from None
