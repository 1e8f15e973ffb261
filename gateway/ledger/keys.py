"""Who is calling: keys made, shown once, hashed, revoked, rotated, and looked up per request.

A secret is `hg-` and 256 random bits. Only its SHA-256 is kept: nothing that long can be guessed,
so a salted slow hash would cost every request and protect nothing. Lookups are cached for
CACHE_S, which is also how long a revoked key may go on; on the host where it was revoked it ends
at once.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import structlog
from msgspec import Struct
from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import SettingsError, Unavailable
from gateway.ledger.stamp import Stamp, beside
from gateway.ledger.tables import keys, teams

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from gateway.settings import Settings

log = structlog.get_logger(__name__)

Scope = Literal["inference", "reports", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("inference",)

CACHE_S = 2.0
STALE_S = 3600.0
"""How long a known key goes on when the database is away."""
MAX_CACHED = 10_000
MAX_NAME = 128


class Caller(Struct, frozen=True, kw_only=True):
    """Who sent a request, as far as the key says."""

    key_id: str = "anonymous"
    team: str = "anonymous"
    scopes: frozenset[str] = frozenset(SCOPES)
    user: str | None = None
    """From the request's body; the pipeline fills it in."""

    def may(self, scope: Scope) -> bool:
        """Whether the key's scopes allow it; admin allows all."""
        return scope in self.scopes or "admin" in self.scopes


ANONYMOUS = Caller()
"""Without a key, where that is allowed (auth = "open", loopback)."""


class Key(Struct, frozen=True, kw_only=True):
    """A row of `keys` as it may be shown."""

    id: str
    prefix: str
    """The first characters of the secret, to recognise it."""
    team: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    """Unix seconds."""
    expires_at: float | None = None
    revoked_at: float | None = None


class UnknownKey(LookupError):
    """No key with that id."""


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

    async def authenticate(self, secret: str) -> Caller | None:
        """The caller a secret belongs to; None if nobody, or if it is expired or revoked.

        Raises:
            Unavailable: the key is not known here yet and the database does not answer.
        """
        sha256 = digest(secret)
        if self._admin is not None and hmac.compare_digest(sha256, self._admin):
            return Caller(key_id="admin", team="admin", scopes=frozenset(SCOPES))
        now = self._clock()
        if self._stamp.changed():
            self._changed_at = now
        cached = self._cache.get(sha256)
        fresh_from = max(now - self._cache_s, self._changed_at)
        if cached is not None and fresh_from < cached[0] <= now:
            return cached[1]
        try:
            async with self._engine.connect() as connection:
                caller = await _look_up(connection, sha256, now)
        except (SQLAlchemyError, OSError) as error:
            if cached is not None and cached[1] is not None and now - cached[0] < STALE_S:
                return cached[1]
            log.warning("key_lookup_failed", error=str(error)[:300])
            raise Unavailable("Keys cannot be checked right now; try again shortly.") from None
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[sha256] = (now, caller)
        return caller


def digest(secret: str) -> str:
    """What the database keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def admin_digest(settings: "Settings", env: Mapping[str, str] | None = None) -> str | None:
    """The digest of [server] admin_key_env or admin_key_file; None if neither is set.

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
    return digest(secret)


async def _look_up(connection: "AsyncConnection", sha256: str, now: float) -> Caller | None:
    now_us = round(now * 1e6)
    found = (
        await connection.execute(
            select(keys.c.id, keys.c.team, keys.c.scopes)
            .where(
                or_(
                    keys.c.sha256 == sha256,
                    (keys.c.previous_sha256 == sha256) & (keys.c.previous_expires_us > now_us),
                )
            )
            .where(keys.c.revoked_us.is_(None))
            .where(or_(keys.c.expires_us.is_(None), keys.c.expires_us > now_us))
        )
    ).first()
    if found is None:
        return None
    return Caller(key_id=found.id, team=found.team, scopes=frozenset(found.scopes))


# Administration: short-lived, over an open transaction


def new_secret() -> str:
    """`hg-` and 256 random bits."""
    return "hg-" + secrets.token_urlsafe(32)


async def create_key(
    connection: "AsyncConnection",
    *,
    team: str,
    name: str = "",
    scopes: Sequence[str] = DEFAULT_SCOPES,
    expires_at: float | None = None,
    now: float,
) -> tuple[Key, str]:
    """A new key, and its secret: the only time it is seen. The team is made if it is new.

    Raises:
        ValueError: an unknown scope, or a name or team that is empty, too long or reserved.
    """
    check_name("team", team)
    if len(name) > MAX_NAME:
        raise ValueError(f"name has {len(name)} characters; at most {MAX_NAME}")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(f"scope {unknown or list(scopes)!r}; allowed: {', '.join(SCOPES)}")
    if expires_at is not None and expires_at <= now:
        raise ValueError("expires in the past")
    await create_team(connection, team, now=now)
    secret = new_secret()
    key = Key(
        id="key_" + secrets.token_hex(8),
        prefix=secret[:8],
        team=team,
        name=name,
        scopes=tuple(scopes),
        created_at=now,
        expires_at=expires_at,
    )
    await connection.execute(
        insert(keys).values(
            id=key.id,
            sha256=digest(secret),
            prefix=key.prefix,
            team=team,
            name=name,
            scopes=list(scopes),
            created_us=round(now * 1e6),
            expires_us=None if expires_at is None else round(expires_at * 1e6),
        )
    )
    return key, secret


async def list_keys(connection: "AsyncConnection", *, team: str | None = None) -> list[Key]:
    """All keys, or a team's, oldest first; never a secret."""
    query = select(keys).order_by(keys.c.created_us, keys.c.id)
    if team is not None:
        query = query.where(keys.c.team == team)
    return [_key(row) for row in await connection.execute(query)]


async def revoke_key(connection: "AsyncConnection", key_id: str, *, now: float) -> Key:
    """From CACHE_S seconds on nobody gets in with it; revoking again changes nothing.

    Raises:
        UnknownKey: no such id.
    """
    await connection.execute(
        update(keys)
        .where(keys.c.id == key_id, keys.c.revoked_us.is_(None))
        .values(revoked_us=round(now * 1e6))
    )
    return await _get(connection, key_id)


async def rotate_key(
    connection: "AsyncConnection", key_id: str, *, overlap_s: float = 0.0, now: float
) -> tuple[Key, str]:
    """A new secret for the same key; the old one works for another `overlap_s` seconds.

    Raises:
        UnknownKey: no such id.
        ValueError: it is revoked, or a negative overlap.
    """
    if overlap_s < 0:
        raise ValueError(f"overlap is {overlap_s} s; 0 or more")
    old = await _get(connection, key_id)
    if old.revoked_at is not None:
        raise ValueError(f"key {key_id!r} is revoked; create a new one")
    secret = new_secret()
    await connection.execute(
        update(keys)
        .where(keys.c.id == key_id)
        .values(
            previous_sha256=keys.c.sha256 if overlap_s else None,
            previous_expires_us=round((now + overlap_s) * 1e6) if overlap_s else None,
            sha256=digest(secret),
            prefix=secret[:8],
        )
    )
    return await _get(connection, key_id), secret


async def create_team(connection: "AsyncConnection", name: str, *, now: float) -> bool:
    """Whether the team is new.

    Raises:
        ValueError: empty, too long, with control characters, or reserved.
    """
    check_name("team", name)
    known = await connection.execute(select(teams.c.name).where(teams.c.name == name))
    if known.first() is not None:
        return False
    await connection.execute(insert(teams).values(name=name, created_us=round(now * 1e6)))
    return True


async def list_teams(connection: "AsyncConnection") -> list[dict[str, Any]]:
    """name, created_at (unix seconds) and the number of live keys of each team, by name."""
    rows = (await connection.execute(select(teams).order_by(teams.c.name))).all()
    live = await connection.execute(select(keys.c.team).where(keys.c.revoked_us.is_(None)))
    counts: dict[str, int] = {}
    for (team,) in live:
        counts[team] = counts.get(team, 0) + 1
    return [
        {"name": row.name, "created_at": row.created_us / 1e6, "keys": counts.get(row.name, 0)}
        for row in rows
    ]


def check_name(what: str, name: str) -> None:
    """Raises ValueError for a name that could not be told apart in reports and logs."""
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"{what} {name!r}: 1 to {MAX_NAME} printable characters, no outer spaces")
    if name in ("anonymous", "admin"):
        raise ValueError(f"{what} {name!r} is reserved")


async def _get(connection: "AsyncConnection", key_id: str) -> Key:
    row = (await connection.execute(select(keys).where(keys.c.id == key_id))).first()
    if row is None:
        raise UnknownKey(f"no key {key_id!r}; `headgate keys list` shows them all")
    return _key(row)


def _key(row: Any) -> Key:
    return Key(
        id=row.id,
        prefix=row.prefix,
        team=row.team,
        name=row.name,
        scopes=tuple(row.scopes),
        created_at=row.created_us / 1e6,
        expires_at=None if row.expires_us is None else row.expires_us / 1e6,
        revoked_at=None if row.revoked_us is None else row.revoked_us / 1e6,
    )
