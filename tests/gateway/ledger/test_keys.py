"""Keys: shown once, hashed, found, expired, revoked, rotated."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import SettingsError, Unavailable
from gateway.ledger.access import Only
from gateway.ledger.key_store import (
    NewKey,
    UnknownKey,
    UnknownUser,
    change_team,
    create_key,
    create_team,
    create_user,
    limit_key,
    list_keys,
    list_teams,
    list_users,
    remove_user,
    revoke_key,
    rotate_key,
)
from gateway.ledger.keys import ANONYMOUS, KeyBook, admin_digest
from gateway.ledger.stamp import NAME, touch
from gateway.ledger.tables import keys
from gateway.limits.model import Limited, RateLimits, check_limits, shown
from gateway.settings import ServerSettings, Settings


class Clock:
    """Unix seconds that tests move."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def _create(engine: AsyncEngine, clock: Clock, **fields: object) -> tuple[str, str]:
    async with engine.begin() as connection:
        wanted = NewKey(**{"team": "search", **fields})  # type: ignore[arg-type]
        key, secret = await create_key(connection, wanted, now=clock.now)
    return key.id, secret


async def test_key_is_found_by_its_secret_alone(engine: AsyncEngine) -> None:
    """The caller has the key's id, team and scopes; other secrets are nobody's."""
    clock = Clock()
    key_id, secret = await _create(engine, clock, scopes=("inference", "reports"))
    book = KeyBook(engine, clock=clock)
    caller = await book.authenticate(secret)
    assert caller is not None
    assert (caller.key_id, caller.team) == (key_id, "search")
    assert caller.may("reports")
    assert not caller.may("admin")
    assert await book.authenticate(secret[:-1]) is None
    assert await book.authenticate("' OR 1=1 --") is None
    assert await book.authenticate("") is None
    assert ANONYMOUS.may("admin"), "without keys, on loopback, everything is allowed"


async def test_secret_is_nowhere_in_the_database(engine: AsyncEngine) -> None:
    """Only a digest and the first characters are kept; secrets are long and all different."""
    clock = Clock()
    secrets = [(await _create(engine, clock))[1] for _ in range(3)]
    async with engine.connect() as connection:
        rows = str((await connection.execute(select(keys))).all())
        listed = await list_keys(connection)
    for secret in secrets:
        assert secret.startswith("hg-")
        assert len(secret) >= 3 + 43
        assert secret[8:] not in rows
    assert {secret[:8] for secret in secrets} == {key.prefix for key in listed}
    assert len(set(secrets)) == 3


async def test_revoked_key_is_refused_within_two_seconds(engine: AsyncEngine) -> None:
    """A gateway that knows the key goes on for the cache's time, then refuses."""
    clock = Clock()
    key_id, secret = await _create(engine, clock)
    book = KeyBook(engine, clock=clock)
    assert await book.authenticate(secret) is not None
    async with engine.begin() as connection:
        await revoke_key(connection, key_id, now=clock.now)
        again = await revoke_key(connection, key_id, now=clock.now + 5)
    assert again.revoked_at == clock.now, "revoking again changes nothing"
    clock.now += 2.0
    assert await book.authenticate(secret) is None
    async with engine.begin() as connection:
        with pytest.raises(UnknownKey, match="nobody"):
            await revoke_key(connection, "nobody", now=clock.now)


async def test_requests_at_once_ask_for_a_key_once(engine: AsyncEngine) -> None:
    """A burst with one key is one look-up, not one each; what changes meanwhile is seen at once."""
    clock = Clock()
    key_id, secret = await _create(engine, clock)
    asked: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _note(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        asked.append(statement)

    book = KeyBook(engine, clock=clock)
    for _ in range(2):
        found = await asyncio.gather(*(book.authenticate(secret) for _ in range(200)))
        assert {caller and caller.key_id for caller in found} == {key_id}
        clock.now += 2.0
    assert sum("keys" in statement for statement in asked) == 2
    left = asyncio.create_task(book.authenticate(secret))
    stays = asyncio.create_task(book.authenticate(secret))
    await asyncio.sleep(0)
    left.cancel()
    assert await stays is not None, "who leaves does not take the answer along"


async def test_key_expires(engine: AsyncEngine) -> None:
    """An expired key is nobody's; one cannot be made already expired."""
    clock = Clock()
    _, secret = await _create(engine, clock, expires_at=clock.now + 10)
    book = KeyBook(engine, clock=clock, cache_s=0)
    assert await book.authenticate(secret) is not None
    clock.now += 10
    assert await book.authenticate(secret) is None
    with pytest.raises(ValueError, match="past"):
        await _create(engine, clock, expires_at=clock.now)


async def test_rotated_key_keeps_its_id_and_overlaps(engine: AsyncEngine) -> None:
    """Both secrets work for the overlap, then only the new one; the id stays."""
    clock = Clock()
    key_id, old = await _create(engine, clock)
    async with engine.begin() as connection:
        key, new = await rotate_key(connection, key_id, overlap_s=60, now=clock.now)
    book = KeyBook(engine, clock=clock, cache_s=0)
    assert key.id == key_id
    for secret in (old, new):
        caller = await book.authenticate(secret)
        assert caller is not None
        assert caller.key_id == key_id
    clock.now += 60
    assert await book.authenticate(old) is None
    assert await book.authenticate(new) is not None
    async with engine.begin() as connection:
        _, newest = await rotate_key(connection, key_id, now=clock.now)
        await revoke_key(connection, key_id, now=clock.now)
        with pytest.raises(ValueError, match="revoked"):
            await rotate_key(connection, key_id, now=clock.now)
    assert await book.authenticate(new) is None
    assert await book.authenticate(newest) is None


@pytest.mark.parametrize("team", ["", " ", " x", "a\nb", "x" * 129, "anonymous", "admin"])
async def test_team_name_is_checked(engine: AsyncEngine, team: str) -> None:
    """Names that could not be told apart in reports, or that mean something else, are refused."""
    async with engine.begin() as connection:
        with pytest.raises(ValueError, match="team"):
            await create_key(connection, NewKey(team=team), now=1.0)


async def test_scopes_are_checked(engine: AsyncEngine) -> None:
    """An unknown scope or none at all is refused, naming what is allowed."""
    for scopes in (("inference", "root"), ()):
        with pytest.raises(ValueError, match="inference, reports, admin"):
            await _create(engine, Clock(), scopes=scopes)


async def test_teams_are_made_once_and_listed(engine: AsyncEngine) -> None:
    """A key makes its team; making it again says so; hostile names are just names."""
    hostile = 'x"); DROP TABLE teams; --'
    clock = Clock()
    await _create(engine, clock, team=hostile)
    async with engine.begin() as connection:
        assert not await create_team(connection, hostile, now=clock.now)
        assert await create_team(connection, "b", now=clock.now)
        found = await list_teams(connection)
    assert {team["name"]: team["keys"] for team in found} == {hostile: 1, "b": 0}


async def test_known_keys_outlive_a_database_outage(engine: AsyncEngine) -> None:
    """Without a database known keys go on for an hour; unknown ones get 503, never 401."""
    clock = Clock()
    _, secret = await _create(engine, clock)
    book = KeyBook(engine, clock=clock)
    assert await book.authenticate(secret) is not None
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE keys RENAME TO away"))
    clock.now += 1800
    assert await book.authenticate(secret) is not None
    with pytest.raises(Unavailable):
        await book.authenticate("hg-unknown")
    clock.now += 1801
    with pytest.raises(Unavailable):
        await book.authenticate(secret)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_known_key_does_not_wait_for_a_database_that_hangs(engine: AsyncEngine) -> None:
    """Requests go on with what is known; one look-up goes on, and its answer holds afterwards."""
    clock = Clock()
    key_id, secret = await _create(engine, clock)
    book = KeyBook(engine, clock=clock)
    assert await book.authenticate(secret) is not None
    clock.now += 60
    async with engine.begin() as connection:
        await connection.execute(text("LOCK TABLE keys IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        assert await book.authenticate(secret) is not None
        clock.now += 1
        for _ in range(20):
            assert await book.authenticate(secret) is not None
        assert time.monotonic() - began < 3.0
        revoked = update(keys).where(keys.c.id == key_id).values(revoked_us=1)
        await connection.execute(revoked)
    for _ in range(200):
        if await book.authenticate(secret) is None:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a revoked key still holds 10 s after the database answers again")


async def test_operator_s_key_may_do_everything(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that the configuration names needs no database row."""
    monkeypatch.setenv("MY_ADMIN", "very-secret")
    settings = Settings(server=ServerSettings(admin_key_env="MY_ADMIN"))
    caller = await KeyBook(engine, settings).authenticate("very-secret")
    assert caller is not None
    assert caller.may("admin")
    with pytest.raises(SettingsError, match="MY_ADMIN"):
        admin_digest(settings, env={})


async def test_revocation_on_this_host_is_seen_at_once(engine: AsyncEngine, tmp_path: Path) -> None:
    """The stamp that commands touch makes a gateway forget what it remembered."""
    clock = Clock()
    key_id, secret = await _create(engine, clock)
    book = KeyBook(engine, clock=clock, stamp=tmp_path / NAME)
    assert await book.authenticate(secret) is not None
    async with engine.begin() as connection:
        await revoke_key(connection, key_id, now=clock.now)
    assert await book.authenticate(secret) is not None, "remembered"
    touch(tmp_path)
    assert await book.authenticate(secret) is None


async def test_restrictions_and_limits_come_with_the_caller(engine: AsyncEngine) -> None:
    """What a key, its user and its team are limited to is known from one look-up."""
    clock = Clock()
    only = Only(endpoints=("embeddings",), networks=("10.0.0.0/8", "::1"))
    async with engine.begin() as connection:
        await create_user(
            connection,
            "ann",
            team="search",
            limits=RateLimits(tokens_per_minute=500),
            now=clock.now,
        )
        await change_team(connection, "search", limits=RateLimits(concurrent_requests=3), weight=5)
    key_id, secret = await _create(
        engine, clock, user="ann", only=only, limits=RateLimits(requests_per_minute=7)
    )
    caller = await KeyBook(engine, clock=clock, cache_s=0).authenticate(secret)
    assert caller is not None
    assert (caller.user, caller.owned, caller.weight, caller.only) == ("ann", True, 5, only)
    assert caller.limited == (
        Limited(f"key:{key_id}", RateLimits(requests_per_minute=7)),
        Limited("user:ann", RateLimits(tokens_per_minute=500)),
        Limited("team:search", RateLimits(concurrent_requests=3)),
    )
    assert caller.may_ask("embeddings")
    assert not caller.may_ask("chat/completions")
    places = {"10.1.2.3": True, "::ffff:10.1.2.3": True, "::1": True, "11.0.0.1": False}
    assert {place: caller.may_come_from(place) for place in places} == places
    assert not caller.may_come_from("")
    assert not caller.may_come_from("somewhere")
    async with engine.begin() as connection:
        await limit_key(connection, key_id, RateLimits())
    caller = await KeyBook(engine, clock=clock).authenticate(secret)
    assert caller is not None
    assert [limited.subject for limited in caller.limited] == ["user:ann", "team:search"]


async def test_removed_user_s_keys_end(engine: AsyncEngine) -> None:
    """Removing a user revokes his keys; he cannot get another until he is made again."""
    clock = Clock()
    async with engine.begin() as connection:
        await create_user(connection, "ann", team="search", now=clock.now)
    _, secret = await _create(engine, clock, user="ann")
    with pytest.raises(UnknownUser, match="ads"):
        await _create(engine, clock, user="ann", team="ads")
    async with engine.begin() as connection:
        assert await remove_user(connection, "ann", now=clock.now) == 1
        assert [user["removed_at"] for user in await list_users(connection)] == [clock.now]
    assert await KeyBook(engine, clock=clock).authenticate(secret) is None
    with pytest.raises(UnknownUser, match="ann"):
        await _create(engine, clock, user="ann")
    with pytest.raises(UnknownUser, match="bob"):
        await _create(engine, clock, user="bob")
    async with engine.begin() as connection:
        with pytest.raises(ValueError, match="search"):
            await create_user(connection, "ann", team="ads", now=clock.now)
        await create_user(connection, "ann", team="search", now=clock.now)
    await _create(engine, clock, user="ann")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"role": "king", "scopes": ("admin",)}, "owner, operator"),
        ({"role": "auditor"}, "needs the scope"),
        ({"only": Only(networks=("10.0.0.0/33",))}, "CIDR"),
        ({"only": Only(models=())}, "models"),
        ({"expires_at": 1e15}, "9999"),
    ],
)
async def test_bad_keys_are_refused(
    engine: AsyncEngine, fields: dict[str, object], why: str
) -> None:
    """Unknown roles, roles without admin, networks that are none, dates that cannot be."""
    with pytest.raises(ValueError, match=why):
        await _create(engine, Clock(), **fields)


@pytest.mark.parametrize(
    "given",
    [
        {"requests_per_minute": 0},
        {"requests_per_minute": -1},
        {"tokens_per_minute": 1.5},
        {"tokens_per_minute": True},
        {"usd_per_minute": "-1"},
        {"usd_per_minute": "NaN"},
        {"usd_per_minute": "much"},
        {"per_second": 1},
    ],
)
def test_bad_limits_are_refused(given: dict[str, object]) -> None:
    """Zero, negative, fractional and unknown limits are none."""
    with pytest.raises(ValueError, match=r"allowed|amount"):
        check_limits(given)


def test_limits_round_trip_as_they_were_given() -> None:
    """Dollars stay exact; what was not given is not shown."""
    given = {"requests_per_minute": 60, "usd_per_minute": "0.000000001"}
    assert shown(check_limits({**given, "tokens_per_minute": None})) == given
