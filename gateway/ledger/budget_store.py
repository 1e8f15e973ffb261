"""Budgets in SQL: limits, what counts towards them, and what their windows have spent.

Counters (`budget_spend`) are where all gateway processes agree; `lease_store.py` moves money
through them. The database's clock says which window it is.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, or_, select, update

from gateway.ledger import state, subjects
from gateway.ledger.database import insert_once
from gateway.ledger.database_clock import now_of
from gateway.ledger.money import MAX_NANO_USD, parse_usd, usd_text
from gateway.ledger.records import FIRST_CORRECTION
from gateway.ledger.tables import budget_alerts, budget_spend, budgets, charges, leases, requests
from gateway.ledger.windows import (
    bucket_us_of,
    check_window,
    check_zone,
    first_start_us,
    window_start_us,
)

if TYPE_CHECKING:
    from sqlalchemy import ScalarSelect
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_LIMIT_NANO_USD = MAX_NANO_USD // 4
"""So that no sum in SQL can leave BIGINT."""
DEFAULT_ALERT_PERCENTS = (80, 100)
_NEARLY_PERCENT = 95
"""From here on a hard limit that had no room for a request counts as spent: what is left of it is
smaller than requests are, so nobody would ever hear of the last percent."""
EVERYBODY = "global"
_ALIASES = {"organisation": EVERYBODY, "organization": EVERYBODY, "org": EVERYBODY}
_KINDS = ("team", "key", "user", "tag", "model")
NOT_CHARGED = ("shadow", "audit")
"""The operator's own experiments: no customer's budget pays for them."""
_BEFORE_LEASE_US = 60_000_000
"""Longest that a request may have waited, on a busy database, for the lease it reserved from."""


class Budget(Struct, frozen=True, kw_only=True):
    """A limit."""

    scope: str
    """team:T, key:K, user:U, tag:NAME=VALUE, model:BACKEND, or global: the organisation."""
    window: str
    """See windows.py."""
    limit_nano_usd: int
    soft: bool = False
    """Warns, never refuses."""
    tz: str = "UTC"
    """In which days, weeks and months begin."""
    alert_percents: tuple[int, ...] = DEFAULT_ALERT_PERCENTS
    """Of the limit; passing one is told once per window."""
    downgrade_percent: int | None = None
    """From here on `downgrade_policy` decides in place of any other."""
    downgrade_policy: str | None = None
    created_us: int = 0
    """When it was made, later than all that were there before. One that was removed and made again,
    or that counts in another time zone, is another one."""


class BudgetBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget as the API takes it."""

    scope: str
    limit_usd: Decimal
    window: str = "day"
    soft: bool = False
    tz: str = "UTC"
    alert_percents: list[int] = msgspec.field(default_factory=lambda: list(DEFAULT_ALERT_PERCENTS))
    downgrade_percent: int | None = None
    downgrade_policy: str | None = None

    def wanted(self) -> Budget:
        """The same in nano-dollars. Raises ValueError."""
        return Budget(
            scope=self.scope,
            window=self.window,
            limit_nano_usd=parse_usd(str(self.limit_usd)),
            soft=self.soft,
            tz=self.tz,
            alert_percents=tuple(self.alert_percents),
            downgrade_percent=self.downgrade_percent,
            downgrade_policy=self.downgrade_policy,
        )


class Counter(Struct, frozen=True):
    """Names one row of budget_spend: a window, or a rolling window's newest bucket."""

    scope: str
    window: str
    start_us: int


class Spend(Struct, frozen=True, kw_only=True):
    """What a window says, in nano-dollars."""

    spent: int = 0
    reserved: int = 0
    overrun: int = 0

    @property
    def taken(self) -> int:
        """All that counts against the limit."""
        return self.spent + self.reserved + self.overrun

    @property
    def used(self) -> int:
        """What requests have cost."""
        return self.spent + self.overrun


def shown_budget(budget: Budget, spend: Spend | None = None) -> dict[str, Any]:
    """As commands and the API print it."""
    used = spend or Spend()
    shown: dict[str, Any] = msgspec.to_builtins(budget)
    del shown["limit_nano_usd"], shown["created_us"]
    return {
        **shown,
        "limit_usd": usd_text(budget.limit_nano_usd),
        "spent_usd": usd_text(used.spent),
        "reserved_usd": usd_text(used.reserved),
        "overrun_usd": usd_text(used.overrun),
        "left_usd": usd_text(max(budget.limit_nano_usd - used.taken, 0)),
    }


class UnknownBudget(LookupError):
    """No budget for that scope and window."""


def check_scope(scope: str) -> str:
    """The scope as it is stored. Raises ValueError if it is none."""
    scope = _ALIASES.get(scope, scope)
    kind, colon, name = scope.partition(":")
    if scope == EVERYBODY:
        return scope
    if colon and kind in _KINDS and 0 < len(name) <= 128 and name.isprintable():
        tag, equals, value = name.partition("=")
        if kind != "tag" or (tag and equals and value):
            return scope
    raise ValueError(
        f"scope {scope!r}; allowed: team:NAME, key:ID, user:NAME, tag:NAME=VALUE, model:BACKEND "
        "or global (the organisation)"
    )


def check_budget(budget: Budget) -> Budget:
    """The budget with names as they are stored. Raises ValueError saying what is allowed."""
    if not 0 < budget.limit_nano_usd <= MAX_LIMIT_NANO_USD:
        raise ValueError(
            f"limit ${usd_text(budget.limit_nano_usd)}; allowed: more than 0, "
            f"at most {usd_text(MAX_LIMIT_NANO_USD)}"
        )
    percents = [*budget.alert_percents]
    percents += [] if budget.downgrade_percent is None else [budget.downgrade_percent]
    if any(not 1 <= percent <= 1000 for percent in percents) or len(percents) > 17:
        raise ValueError(f"percents {percents}; allowed: 1 to 1000, at most 16 of them")
    if (budget.downgrade_percent is None) != (budget.downgrade_policy is None):
        raise ValueError("downgrade percent and policy; allowed: both or neither")
    return msgspec.structs.replace(
        budget,
        scope=check_scope(budget.scope),
        window=check_window(budget.window),
        tz=check_zone(budget.tz),
        alert_percents=tuple(sorted(set(budget.alert_percents))),
    )


def nameless(scope: str) -> str:
    """The scope for logs, which outlive a customer's data: whom it names is left out."""
    kind, _, name = scope.partition(":")
    return f"{kind}:…" if name and kind in ("team", "user", "tag") else scope


def scopes_of(*, team: str, key: str, user: str | None, tags: Mapping[str, str]) -> list[str]:
    """The scopes that a request falls under, whatever answers it."""
    scopes = [f"key:{key}", f"team:{team}", EVERYBODY]
    if user is not None:
        scopes.append(f"user:{user}")
    return scopes + [f"tag:{name}={value}" for name, value in tags.items()]


def order(counter: Counter) -> tuple[str, str, int]:
    """In which counters are locked."""
    return counter.scope, counter.window, counter.start_us


def counter_of(budget: Budget, now: float) -> Counter:
    """The counter that `budget` uses at `now` (unix seconds)."""
    return Counter(budget.scope, budget.window, window_start_us(budget.window, now, budget.tz))


async def set_budget(
    connection: "AsyncConnection", budget: Budget, *, now: float | None = None
) -> Budget:
    """Make or change a budget. A new one counts what its window already spent.

    Args:
        now: unix seconds; None: by the database's clock.

    Raises:
        ValueError: no such scope, window or zone, or a limit or threshold out of range.
    """
    budget = check_budget(budget)
    here = and_(budgets.c.scope == budget.scope, budgets.c.window == budget.window)
    values: dict[str, Any] = {
        "limit_nano_usd": budget.limit_nano_usd,
        "soft": budget.soft,
        "tz": budget.tz,
        "alert_percents": list(budget.alert_percents),
        "downgrade_percent": budget.downgrade_percent,
        "downgrade_policy": budget.downgrade_policy,
    }
    await state.hold_writers(connection)  # each row is in the sum, or its batch sees the budget
    now = await now_of(connection) if now is None else now
    old_tz = (await connection.execute(select(budgets.c.tz).where(here))).scalar_one_or_none()
    if old_tz != budget.tz:
        youngest = (await connection.execute(select(func.max(budgets.c.created_us)))).scalar()
        values["created_us"] = max(round(now * 1e6), (youngest or 0) + 1)
    if old_tz is not None:
        await connection.execute(update(budgets).where(here).values(**values))
    else:
        await connection.execute(
            insert(budgets).values(scope=budget.scope, window=budget.window, **values)
        )
    counter = counter_of(budget, now)
    if old_tz != budget.tz:
        await _count_anew(connection, counter)
    await _forget_alerts(connection, budget, counter)
    return budget


async def _forget_alerts(connection: "AsyncConnection", budget: Budget, counter: Counter) -> None:
    """What a higher limit has not passed yet will be told when it does."""
    spend = (await read_spend(connection, [counter])).get(counter, Spend())
    c = budget_alerts.c
    here = and_(
        c.scope == counter.scope,
        c.window == counter.window,
        c.window_start_us >= first_start_us(counter.window, counter.start_us),
    )
    told = (await connection.execute(select(c.percent).where(here).distinct())).scalars()
    wrong = [percent for percent in told if not passes(budget, spend, percent, refused=True)]
    if wrong:
        await connection.execute(delete(budget_alerts).where(here, c.percent.in_(wrong)))


def passes(budget: Budget, spend: Spend, percent: int, refused: bool) -> bool:
    """Whether a threshold is passed.

    Args:
        refused: there was no room for a request, whatever the others hold.
    """
    if refused and not budget.soft and percent <= 100:
        percent = min(percent, _NEARLY_PERCENT)
    return spend.used * 100 >= budget.limit_nano_usd * percent


async def _count_anew(connection: "AsyncConnection", counter: Counter) -> None:
    """Bring the window's counters to what the ledger says: an earlier budget's stood still."""
    bucket_us = bucket_us_of(counter.window)
    first = first_start_us(counter.window, counter.start_us)
    starts = range(first, counter.start_us + 1, bucket_us) if bucket_us else (first,)
    found = [Counter(counter.scope, counter.window, start_us) for start_us in starts]
    for one in found:
        await connection.execute(
            insert_once(connection.dialect.name, budget_spend).values(**_names(one))
        )
        await lock(connection, one)
    for one in found:
        last = one.start_us == counter.start_us
        spent = booked(one, until_us=None if last or not bucket_us else one.start_us + bucket_us)
        await connection.execute(
            update(budget_spend)
            .where(is_counter(one))
            .values(spent_nano_usd=spent, overrun_nano_usd=0)
        )
        await _know_all(connection, one)


async def _know_all(connection: "AsyncConnection", counter: Counter) -> None:
    """Leases of an earlier budget need to count nothing that the counter begins with."""
    here = and_(
        leases.c.scope == counter.scope,
        leases.c.window == counter.window,
        leases.c.window_start_us == counter.start_us,
    )
    rows: Sequence[Any] = (await connection.execute(select(leases).where(here))).all()
    for row in rows:
        since_us = await counts_since_us(connection, counter, row.created_us)
        answered = select(booked(counter, since_us=since_us, worker=row.owner))
        known = int((await connection.execute(answered)).scalar_one())
        counted = known - row.spent_nano_usd - row.overrun_nano_usd
        await connection.execute(
            update(leases).where(here, leases.c.owner == row.owner).values(counted_nano_usd=counted)
        )


async def counts_since_us(connection: "AsyncConnection", counter: Counter, leased_us: int) -> int:
    """From when on the requests of a lease's owner are in it.

    A lease that is older than its budget is of an earlier one of the same window, which was
    removed: what it booked for that, it booked in the same counter.
    """
    made = await connection.execute(
        select(budgets.c.created_us).where(
            budgets.c.scope == counter.scope, budgets.c.window == counter.window
        )
    )
    made_us = made.scalar_one_or_none() or 0
    since_us = max(counter.start_us, leased_us - _BEFORE_LEASE_US)
    return max(since_us, made_us) if made_us <= leased_us else since_us


async def remove_budget(connection: "AsyncConnection", *, scope: str, window: str) -> None:
    """Raises UnknownBudget, or ValueError for what can be none."""
    scope, window = check_scope(scope), check_window(window)
    gone = await connection.execute(
        delete(budgets).where(budgets.c.scope == scope, budgets.c.window == window)
    )
    if gone.rowcount == 0:
        raise UnknownBudget(f"no budget for {scope!r} per {window}; `headgate budgets list`")


async def list_budgets(connection: "AsyncConnection") -> list[Budget]:
    """All budgets, by scope and window."""
    rows = await connection.execute(select(budgets).order_by(budgets.c.scope, budgets.c.window))
    return [
        Budget(
            scope=row.scope,
            window=row.window,
            limit_nano_usd=row.limit_nano_usd,
            soft=row.soft,
            tz=row.tz,
            created_us=row.created_us,
            alert_percents=DEFAULT_ALERT_PERCENTS
            if row.alert_percents is None
            else tuple(row.alert_percents),
            downgrade_percent=row.downgrade_percent,
            downgrade_policy=row.downgrade_policy,
        )
        for row in rows
    ]


async def list_spending(
    connection: "AsyncConnection", now: float
) -> list[tuple[Budget, Spend | None]]:
    """All budgets, and what their windows of now have spent."""
    found = await list_budgets(connection)
    counters = [counter_of(budget, now) for budget in found]
    spend = await read_spend(connection, counters)
    return [(one, spend.get(counter)) for one, counter in zip(found, counters, strict=True)]


async def read_spend(
    connection: "AsyncConnection", counters: Sequence[Counter]
) -> dict[Counter, Spend]:
    """What the windows say, rolling ones over all their buckets; one without a row is missing."""
    found: dict[Counter, Spend] = {}
    for start in range(0, len(counters), 100):
        part = counters[start : start + 100]
        rows: Sequence[Any] = (
            await connection.execute(select(budget_spend).where(or_(*map(in_window, part))))
        ).all()
        for counter in part:
            first = first_start_us(counter.window, counter.start_us)
            last = None if first < counter.start_us else counter.start_us
            own = [
                row
                for row in rows
                if (row.scope, row.window) == (counter.scope, counter.window)
                and (row.window_start_us == last if last is not None else True)
            ]
            if own:
                found[counter] = Spend(
                    spent=sum(row.spent_nano_usd for row in own),
                    reserved=sum(row.reserved_nano_usd for row in own),
                    overrun=sum(row.overrun_nano_usd for row in own),
                )
    return found


async def ensure_counter(connection: "AsyncConnection", counter: Counter) -> None:
    """Make the counter's row if it is missing, starting from the charges already in its window.

    A request counts in the window in which it started.
    """
    await connection.execute(
        insert_once(connection.dialect.name, budget_spend).values(
            **_names(counter), spent_nano_usd=booked(counter)
        )
    )


async def lock(connection: "AsyncConnection", counter: Counter) -> None:
    """A write that changes nothing: both databases let only one transaction past it."""
    await connection.execute(
        update(budget_spend)
        .where(is_counter(counter))
        .values(spent_nano_usd=budget_spend.c.spent_nano_usd)
    )


def booked(
    counter: Counter,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    worker: str | None = None,
) -> "ScalarSelect[Any]":
    """What the ledger has in the counter's scope from its start on, of all processes.

    Args:
        worker: only what this process booked: without corrections, which are no process's.
    """
    kind, _, name = counter.scope.partition(":")
    sum_ = (
        select(func.coalesce(func.sum(charges.c.cost_nano_usd), 0))
        .join(requests, requests.c.request_id == charges.c.request_id)
        .where(requests.c.started_us >= (counter.start_us if since_us is None else since_us))
        .where(charges.c.kind.not_in(NOT_CHARGED), ~_takes_back_uncharged())
    )
    if until_us is not None:
        sum_ = sum_.where(requests.c.started_us < until_us)
    if worker is not None:
        sum_ = sum_.where(requests.c.worker == worker, charges.c.seq < FIRST_CORRECTION)
    if kind == "team":  # rows hold random ids, see subjects.py
        sum_ = sum_.where(requests.c.team == subjects.id_of("team", name))
    elif kind == "user":
        sum_ = sum_.where(requests.c.user == subjects.id_of("user", name))
    elif kind == "key":
        sum_ = sum_.where(requests.c.key == name)
    elif kind == "model":
        sum_ = sum_.where(charges.c.backend == name)
    elif kind == "tag":
        tag, _, value = name.partition("=")
        sum_ = sum_.where(requests.c.tags[tag].as_string() == value)
    return sum_.scalar_subquery()


def _takes_back_uncharged() -> ColumnElement[bool]:
    """A reversal of what no budget had paid."""
    wrong = charges.alias("wrong")
    return exists().where(
        charges.c.kind == "reversal",
        wrong.c.request_id == charges.c.request_id,
        wrong.c.seq == charges.c.reverses_seq,
        wrong.c.kind.in_(NOT_CHARGED),
    )


def is_counter(counter: Counter) -> ColumnElement[bool]:
    """This row of budget_spend."""
    return and_(
        budget_spend.c.scope == counter.scope,
        budget_spend.c.window == counter.window,
        budget_spend.c.window_start_us == counter.start_us,
    )


def in_window(counter: Counter) -> ColumnElement[bool]:
    """All rows of budget_spend that count together with this one, later buckets included."""
    first = first_start_us(counter.window, counter.start_us)
    if first == counter.start_us:
        return is_counter(counter)
    return and_(
        budget_spend.c.scope == counter.scope,
        budget_spend.c.window == counter.window,
        budget_spend.c.window_start_us >= first,
    )


def _names(counter: Counter) -> dict[str, Any]:
    return {
        "scope": counter.scope,
        "window": counter.window,
        "window_start_us": counter.start_us,
    }
