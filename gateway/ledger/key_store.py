"""Keys, teams and users as operators make and change them: short-lived, in an open transaction.

A key's secret is seen once, when it is made or rotated. Nothing is deleted: keys are revoked and
users removed, so that the ledger's rows keep their names.
"""

import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import insert, select, update

from gateway.ledger.access import EVERYTHING, ROLES, Only, Role
from gateway.ledger.keys import SCOPES, Scope, digest
from gateway.ledger.tables import keys, teams, users
from gateway.limits.model import NO_LIMITS, RateLimits, check_limits, shown, stored

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

DEFAULT_SCOPES: tuple[Scope, ...] = ("inference",)
RESERVED = ("anonymous", "admin")
"""Names of teams and keys that are always there, without a row."""
MAX_NAME = 128
MAX_LISTED = 256
"""Entries of one restriction."""
MAX_WEIGHT = 1000


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
    user: str | None = None
    role: Role | None = None
    """Of a key with the scope admin."""
    only: Only = EVERYTHING
    limits: RateLimits = NO_LIMITS


class NewKey(Struct, frozen=True, kw_only=True):
    """What an operator may say of a new key."""

    team: str
    name: str = ""
    scopes: Sequence[str] = DEFAULT_SCOPES
    role: str | None = None
    user: str | None = None
    """A user of that team."""
    expires_at: float | None = None
    only: Only = EVERYTHING
    limits: RateLimits = NO_LIMITS


class KeyBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new key as the API takes it."""

    team: str
    name: str = ""
    scopes: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_SCOPES))
    role: str | None = None
    user: str | None = None
    expires_in_s: float | None = None
    only: Only = EVERYTHING
    limits: dict[str, Any] = msgspec.field(default_factory=dict)

    def wanted(self, now: float) -> NewKey:
        """The same, counted from now. Raises ValueError for limits and restrictions that mean
        nothing."""
        return NewKey(
            team=self.team,
            name=self.name,
            scopes=self.scopes,
            role=self.role,
            user=self.user,
            expires_at=None if self.expires_in_s is None else now + self.expires_in_s,
            only=check_only(self.only),
            limits=check_limits(self.limits),
        )


class UnknownKey(LookupError):
    """No key with that id."""


class UnknownTeam(LookupError):
    """No team of that name."""


class UnknownUser(LookupError):
    """No user of that name."""


def shown_key(key: Key) -> dict[str, Any]:
    """As commands and the API print it."""
    return {**msgspec.to_builtins(key), "limits": shown(key.limits)}


def new_secret() -> str:
    """`hg-` and 256 random bits."""
    return "hg-" + secrets.token_urlsafe(32)


async def create_key(
    connection: "AsyncConnection", wanted: NewKey, *, now: float
) -> tuple[Key, str]:
    """A new key, and its secret: the only time it is seen. The team is made if it is new.

    Raises:
        ValueError: an unknown scope or role, a name that is empty, too long or reserved, or a
            restriction that means nothing.
        UnknownUser: the user does not exist in that team.
    """
    check_name("team", wanted.team)
    role = _check_key(wanted, now)
    await create_team(connection, wanted.team, now=now)
    if wanted.user is not None:
        user = await get_user(connection, wanted.user)
        if user["team"] != wanted.team or user["removed_at"] is not None:
            raise UnknownUser(f"no user {wanted.user!r} in team {wanted.team!r}")
    secret = new_secret()
    key = Key(
        id="key_" + secrets.token_hex(8),
        prefix=secret[:8],
        team=wanted.team,
        name=wanted.name,
        scopes=tuple(wanted.scopes),
        created_at=now,
        expires_at=wanted.expires_at,
        user=wanted.user,
        role=role,
        only=wanted.only,
        limits=wanted.limits,
    )
    await connection.execute(
        insert(keys).values(
            id=key.id,
            sha256=digest(secret),
            prefix=key.prefix,
            team=key.team,
            name=key.name,
            scopes=list(key.scopes),
            created_us=round(now * 1e6),
            expires_us=None if key.expires_at is None else round(key.expires_at * 1e6),
            user=key.user,
            role=key.role,
            only=msgspec.to_builtins(key.only) or None,
            limits=stored(key.limits),
        )
    )
    return key, secret


def _check_key(wanted: NewKey, now: float) -> Role | None:
    if len(wanted.name) > MAX_NAME:
        raise ValueError(f"name has {len(wanted.name)} characters; at most {MAX_NAME}")
    unknown = sorted(set(wanted.scopes) - set(SCOPES))
    if unknown or not wanted.scopes:
        raise ValueError(f"scope {unknown or list(wanted.scopes)!r}; allowed: {', '.join(SCOPES)}")
    if wanted.expires_at is not None and not now < wanted.expires_at < 253_402_300_800:
        raise ValueError("expires in the past, or after the year 9999")
    if wanted.role is not None and wanted.role not in ROLES:
        raise ValueError(f"role {wanted.role!r}; allowed: {', '.join(ROLES)}")
    if wanted.role is not None and "admin" not in wanted.scopes:
        raise ValueError("a role needs the scope 'admin'")
    check_only(wanted.only)
    return wanted.role or ("owner" if "admin" in wanted.scopes else None)


def check_only(only: Only) -> Only:
    """The restrictions. Raises ValueError for an empty list, too many, or no network."""
    for field in only.__struct_fields__:
        values = getattr(only, field)
        if values is None:
            continue
        if not 0 < len(values) <= MAX_LISTED or not all(0 < len(v) <= MAX_NAME for v in values):
            raise ValueError(f"{field}: 1 to {MAX_LISTED} names of 1 to {MAX_NAME} characters")
    for text in only.networks or ():
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"network {text!r}; allowed: an address or CIDR block") from None
    return only


async def list_keys(connection: "AsyncConnection", *, team: str | None = None) -> list[Key]:
    """All keys, or a team's, oldest first; never a secret."""
    query = select(keys).order_by(keys.c.created_us, keys.c.id)
    if team is not None:
        query = query.where(keys.c.team == team)
    return [_key(row) for row in await connection.execute(query)]


async def get_key(connection: "AsyncConnection", key_id: str) -> Key:
    """Raises UnknownKey."""
    row = (await connection.execute(select(keys).where(keys.c.id == key_id))).first()
    if row is None:
        raise UnknownKey(f"no key {key_id!r}; `headgate keys list` shows them all")
    return _key(row)


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
    return await get_key(connection, key_id)


async def rotate_key(
    connection: "AsyncConnection", key_id: str, *, overlap_s: float = 0.0, now: float
) -> tuple[Key, str]:
    """A new secret for the same key; the old one works for another `overlap_s` seconds.

    Raises:
        UnknownKey: no such id.
        ValueError: it is revoked, or a negative overlap.
    """
    if not 0 <= overlap_s <= 366 * 86_400:
        raise ValueError(f"overlap is {overlap_s} s; 0 to a year")
    old = await get_key(connection, key_id)
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
    return await get_key(connection, key_id), secret


async def limit_key(connection: "AsyncConnection", key_id: str, limits: RateLimits) -> Key:
    """Set a key's rate limits. Raises UnknownKey."""
    await connection.execute(update(keys).where(keys.c.id == key_id).values(limits=stored(limits)))
    return await get_key(connection, key_id)


async def create_team(connection: "AsyncConnection", name: str, *, now: float) -> bool:
    """Whether the team is new.

    Raises:
        ValueError: empty, too long, with control characters, or reserved.
    """
    check_name("team", name)
    if await is_there(connection, teams, name):
        return False
    await connection.execute(insert(teams).values(name=name, created_us=round(now * 1e6)))
    return True


async def change_team(
    connection: "AsyncConnection",
    name: str,
    *,
    limits: RateLimits | None = None,
    weight: int | None = None,
) -> None:
    """Set a team's rate limits, and its weight where teams share a saturated backend.

    Raises:
        UnknownTeam: no such team.
        ValueError: the weight is out of range.
    """
    if weight is not None and not 1 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight {weight}; allowed: 1 to {MAX_WEIGHT}")
    if not await is_there(connection, teams, name):
        raise UnknownTeam(f"no team {name!r}; `headgate teams list` shows them all")
    values: dict[str, Any] = {} if weight is None else {"weight": weight}
    if limits is not None:
        values["limits"] = stored(limits)
    if values:
        await connection.execute(update(teams).where(teams.c.name == name).values(**values))


async def list_teams(connection: "AsyncConnection") -> list[dict[str, Any]]:
    """name, created_at (unix seconds), weight, limits, and the number of live keys; by name."""
    rows = (await connection.execute(select(teams).order_by(teams.c.name))).all()
    live = await connection.execute(select(keys.c.team).where(keys.c.revoked_us.is_(None)))
    counts: dict[str, int] = {}
    for (team,) in live:
        counts[team] = counts.get(team, 0) + 1
    return [
        {
            "name": row.name,
            "created_at": row.created_us / 1e6,
            "keys": counts.get(row.name, 0),
            "weight": row.weight,
            "limits": _limits(row.limits),
        }
        for row in rows
    ]


async def create_user(
    connection: "AsyncConnection",
    name: str,
    *,
    team: str,
    limits: RateLimits = NO_LIMITS,
    now: float,
) -> None:
    """A user of a team, which is made if it is new. A removed one of that name comes back.

    Raises:
        ValueError: a bad name, or the user is in another team.
    """
    check_name("user", name)
    await create_team(connection, team, now=now)
    if await is_there(connection, users, name):
        old = await get_user(connection, name)
        if old["team"] != team:
            raise ValueError(f"user {name!r} is in team {old['team']!r}")
        await connection.execute(
            update(users).where(users.c.name == name).values(removed_us=None, limits=stored(limits))
        )
        return
    await connection.execute(
        insert(users).values(
            name=name, team=team, created_us=round(now * 1e6), limits=stored(limits)
        )
    )


async def remove_user(connection: "AsyncConnection", name: str, *, now: float) -> int:
    """Let a user in no more: all his keys are revoked. How many there were. Raises UnknownUser."""
    await get_user(connection, name)
    now_us = round(now * 1e6)
    await connection.execute(
        update(users)
        .where(users.c.name == name, users.c.removed_us.is_(None))
        .values(removed_us=now_us)
    )
    gone = await connection.execute(
        update(keys)
        .where(keys.c.user == name, keys.c.revoked_us.is_(None))
        .values(revoked_us=now_us)
    )
    return gone.rowcount


async def get_user(connection: "AsyncConnection", name: str) -> dict[str, Any]:
    """One entry of `list_users`. Raises UnknownUser."""
    row = (await connection.execute(select(users).where(users.c.name == name))).first()
    if row is None:
        raise UnknownUser(f"no user {name!r}; `headgate users list` shows them all")
    return _user(row)


async def list_users(
    connection: "AsyncConnection", *, team: str | None = None
) -> list[dict[str, Any]]:
    """name, team, limits, created_at and removed_at (unix seconds) of each user, by name."""
    query = select(users).order_by(users.c.name)
    if team is not None:
        query = query.where(users.c.team == team)
    return [_user(row) for row in await connection.execute(query)]


def check_name(what: str, name: str) -> None:
    """Raises ValueError for a name that could not be told apart in reports and logs."""
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"{what} {name!r}: 1 to {MAX_NAME} printable characters, no outer spaces")
    if name in RESERVED:
        raise ValueError(f"{what} {name!r} is reserved")


async def is_there(connection: "AsyncConnection", table: "Table", name: str) -> bool:
    """Whether there is a team or a user of that name."""
    known = await connection.execute(select(table.c.name).where(table.c.name == name))
    return known.first() is not None


def _limits(found: Mapping[str, Any] | None) -> RateLimits:
    return msgspec.convert(found, RateLimits) if found else NO_LIMITS


def _user(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "team": row.team,
        "limits": _limits(row.limits),
        "created_at": row.created_us / 1e6,
        "removed_at": None if row.removed_us is None else row.removed_us / 1e6,
    }


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
        user=row.user,
        role=row.role,
        only=msgspec.convert(row.only, Only) if row.only else EVERYTHING,
        limits=_limits(row.limits),
    )
