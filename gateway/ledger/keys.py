"""Who is calling: a key's secret looked up per request, and what the key may do.

A secret is `hg-` and 256 random bits. Only its SHA-256 is kept: nothing that long can be guessed,
so a salted slow hash would cost every request and protect nothing. Lookups are cached for
CACHE_S, which is also how long a revoked key may go on; on the host where it was revoked it ends
at once. Making and changing keys is in key_store.py.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy import or_, select
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import SettingsError, Unavailable
from gateway.ledger.access import EVERYTHING, PERMISSIONS, Only, Permission, Role
from gateway.ledger.stamp import Stamp, beside
from gateway.ledger.tables import keys, teams, users
from gateway.limits.model import Limited, RateLimits

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from gateway.settings import Settings

log = structlog.get_logger(__name__)

Scope = Literal["inference", "reports", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

CACHE_S = 2.0
STALE_S = 3600.0
"""How long a known key goes on when the database is away."""
PATIENCE_S = 0.5
"""How long requests with a known key wait for a database that is slow to say more of it."""
MAX_CACHED = 10_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Caller(Struct, frozen=True, kw_only=True):
    """Who sent a request, as far as the key says."""

    key_id: str = "anonymous"
    team: str = "anonymous"
    scopes: frozenset[str] = frozenset(SCOPES)
    user: str | None = None
    """Whom the key belongs to, else as the request's body says; the pipeline fills it in."""
    owned: bool = False
    """The key belongs to `user`: no body can say otherwise."""
    role: Role = "owner"
    """What the scope admin means."""
    only: Only = EVERYTHING
    limited: tuple[Limited, ...] = ()
    """Rate limits of the key, its user and its team."""
    weight: int = 1
    """Of its team, where teams share a saturated backend."""

    def may(self, scope: Scope) -> bool:
        """Whether the key's scopes allow it; admin allows all, a team's admin no reports: they
        tell of other teams, too."""
        if scope in self.scopes:
            return True
        return "admin" in self.scopes and not (scope == "reports" and self.role == "team")

    def can(self, permission: Permission, *, team: str | None = None) -> bool:
        """Whether its role allows an act of administration.

        Args:
            team: that the act is about; None: no single one.
        """
        if "admin" not in self.scopes or permission not in PERMISSIONS[self.role]:
            return False
        return self.role != "team" or team == self.team

    def may_ask(self, endpoint: str) -> bool:
        """Whether the key may use an endpoint (`chat/completions`, …)."""
        return self.only.endpoints is None or endpoint in self.only.endpoints

    def may_come_from(self, address: str | None) -> bool:
        """Whether the key may be used from an IP address."""
        if self.only.networks is None:
            return True
        try:
            at = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        if isinstance(at, ipaddress.IPv6Address) and at.ipv4_mapped is not None:
            at = at.ipv4_mapped
        return any(at in network for network in _networks(self.only.networks))


ANONYMOUS = Caller()
"""Without a key, where that is allowed (auth = "open", loopback)."""
_ADMIN = Caller(key_id="admin", team="admin")
"""With [server] admin_key_env or admin_key_file."""


@lru_cache(maxsize=1024)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


class KeyBook:
    """Looks up callers by secret. One per gateway process.

    Args:
        clock: unix seconds, for expiry.
        stamp: the state folder's admin.stamp; None: beside a SQLite database.
    """

    def __init__(
        self,
        engine: "AsyncEngine",
        settings: "Settings | None" = None,
        *,
        clock: Callable[[], float] = time.time,
        stamp: Path | None = None,
        cache_s: float = CACHE_S,
    ) -> None:
        self._stamp = Stamp(stamp or beside(engine))
        self._engine = engine
        self._clock = clock
        self._cache_s = cache_s
        self._admin = admin_digest(settings) if settings else None
        self._changed_at = -1.0
        self._cache: dict[str, tuple[float, Caller | None]] = {}
        self._asking: dict[str, tuple[float, asyncio.Task[Caller | None]]] = {}
        """By digest, since when it is being looked up, and the look-up."""

    async def authenticate(self, secret: str) -> Caller | None:
        """The caller a secret belongs to; None if nobody, or if it is expired or revoked.

        Raises:
            Unavailable: the key is not known here yet and the database does not answer.
        """
        sha256 = digest(secret)
        if self._admin is not None and hmac.compare_digest(sha256, self._admin):
            return _ADMIN
        now = self._clock()
        if self._stamp.changed():
            self._changed_at = now
        cached = self._cache.get(sha256)
        fresh_from = max(now - self._cache_s, self._changed_at)
        if cached is not None and fresh_from < cached[0] <= now:
            return cached[1]
        asking = self._asking.get(sha256)
        if asking is None or asking[0] <= self._changed_at:
            asking = self._asking[sha256] = (now, asyncio.create_task(self._ask(sha256, now)))
        known = cached[1] if cached is not None and now - cached[0] < STALE_S else None
        waited_s = max(now - asking[0], 0.0)
        patience_s = None if known is None else max(PATIENCE_S - waited_s, 0.0)
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(asking[1])
        except (SQLAlchemyError, OSError) as error:  # a TimeoutError is one
            if known is not None:
                return known
            log.warning("key_lookup_failed", error=str(error)[:300])
            raise Unavailable("Keys cannot be checked right now; try again shortly.") from None

    async def _ask(self, sha256: str, now: float) -> Caller | None:
        """Look a key up and remember it. Requests that come meanwhile wait for the same answer."""
        try:
            async with self._engine.connect() as connection:
                caller = await _look_up(connection, _holding(sha256, now), now)
        finally:  # a later look-up may have taken its place
            if self._asking.get(sha256, (now, None))[1] is asyncio.current_task():
                del self._asking[sha256]
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[sha256] = (now, caller)
        return caller

    async def owner(self, key_id: str) -> Caller | None:
        """The caller a key's id belongs to, for what goes on after his request; None: no more.

        Raises:
            SQLAlchemyError, OSError: the database does not answer.
        """
        if key_id == ANONYMOUS.key_id:
            return ANONYMOUS
        if key_id == _ADMIN.key_id:
            return _ADMIN
        async with self._engine.connect() as connection:
            return await _look_up(connection, keys.c.id == key_id, self._clock())


def digest(secret: str) -> str:
    """What the database keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def admin_digest(settings: "Settings", env: Mapping[str, str] | None = None) -> str | None:
    """The digest of the key that [server] names. Raises SettingsError, see `admin_secret`."""
    secret = admin_secret(settings, env)
    return None if secret is None else digest(secret)


def admin_secret(settings: "Settings", env: Mapping[str, str] | None = None) -> str | None:
    """What [server] admin_key_env or admin_key_file holds; None if neither is set.

    Raises:
        SettingsError: the variable is empty or the file cannot be read.
    """
    server = settings.server
    if server.admin_key_env:
        secret = (os.environ if env is None else env).get(server.admin_key_env, "")
        if not secret:
            raise SettingsError(f"server.admin_key_env: ${server.admin_key_env} is not set")
    elif server.admin_key_file:
        try:
            secret = Path(server.admin_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"server.admin_key_file: {error}") from None
    else:
        return None
    return secret


def _holding(sha256: str, now: float) -> "ColumnElement[bool]":
    """The key of a secret, the one before its last rotation included while that holds."""
    previous = (keys.c.previous_sha256 == sha256) & (keys.c.previous_expires_us > round(now * 1e6))
    return or_(keys.c.sha256 == sha256, previous)


async def _look_up(
    connection: "AsyncConnection", which: "ColumnElement[bool]", now: float
) -> Caller | None:
    now_us = round(now * 1e6)
    found = (
        await connection.execute(
            select(
                keys.c.id,
                keys.c.team,
                keys.c.scopes,
                keys.c.user,
                keys.c.role,
                keys.c.only,
                keys.c.limits,
                users.c.limits.label("user_limits"),
                teams.c.limits.label("team_limits"),
                teams.c.weight,
            )
            .outerjoin(users, users.c.name == keys.c.user)
            .outerjoin(teams, teams.c.name == keys.c.team)
            .where(which)
            .where(keys.c.revoked_us.is_(None), users.c.removed_us.is_(None))
            .where(or_(keys.c.expires_us.is_(None), keys.c.expires_us > now_us))
        )
    ).first()
    return None if found is None else _caller(found)


def _caller(row: Any) -> Caller:
    limited = [
        Limited(f"{kind}:{name}", msgspec.convert(limits, RateLimits))
        for kind, name, limits in (
            ("key", row.id, row.limits),
            ("user", row.user, row.user_limits),
            ("team", row.team, row.team_limits),
        )
        if limits
    ]
    return Caller(
        key_id=row.id,
        team=row.team,
        scopes=frozenset(row.scopes),
        user=row.user,
        owned=row.user is not None,
        role=row.role or "owner",
        only=msgspec.convert(row.only, Only) if row.only else EVERYTHING,
        limited=tuple(limited),
        weight=row.weight or 1,
    )
