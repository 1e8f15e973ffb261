"""What a report asks for, checked: group keys, a half-open period, a time zone, filters."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, cast, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

USER = "user"
REQUEST_KEYS = ("team", "key", USER, "model", "policy", "rule", "task")
CHARGE_KEYS = ("backend", "machine", "machine_type", "kind")
TIME_KEYS = ("day", "hour")
GROUP_KEYS = (*REQUEST_KEYS, *CHARGE_KEYS, *TIME_KEYS)
IdleKey = Literal["charges", "tokens", "requests", "groups"]
"""What the machines' idle cost is shared out by: what a row has of it; groups: evenly."""
TAG = "tag:"
_TAG_NAME = re.compile(r'^[^"\\\x00-\x1f]{1,64}$')


class ReportError(ValueError):
    """A question that has no answer; the message says what is allowed.

    Attributes:
        param: the parameter that asks it; None: several together.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ReportQuery(Struct, frozen=True, kw_only=True):
    """A checked question."""

    group_by: tuple[str, ...] = ()
    since: datetime | None = None
    """Inclusive; None: from the first row on."""
    until: datetime
    """Exclusive."""
    tz: str = "UTC"
    filters: Mapping[str, Sequence[str]] = {}
    """Group key (no time) → allowed values."""
    idle_by: IdleKey = "charges"

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Which of `user` and tags it names."""
        named = dict.fromkeys((*self.group_by, *self.filters))
        return tuple(key for key in named if key == USER or key.startswith(TAG))

    @property
    def since_us(self) -> int:
        """Unix microseconds."""
        return 0 if self.since is None else round(self.since.timestamp() * 1e6)

    @property
    def until_us(self) -> int:
        """Unix microseconds."""
        return round(self.until.timestamp() * 1e6)


def parse_query(
    *,
    group_by: str | Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    tz: str = "UTC",
    filters: Mapping[str, Sequence[str]] | None = None,
    idle_by: str = "charges",
    now: datetime,
) -> ReportQuery:
    """Check a question as it came from a command line or a URL.

    Args:
        group_by: keys, or one string with commas.
        since, until: RFC 3339, or a date (its midnight in `tz`); until None: `now`.
        now: aware.

    Raises:
        ReportError: unknown group key, time zone or filter, an impossible date, an empty period.
    """
    keys = [k.strip() for k in group_by.split(",")] if isinstance(group_by, str) else group_by
    keys = tuple(key for key in keys if key)
    for key in keys:
        _check_key(key)
    if len(set(keys)) != len(keys):
        raise ReportError(f"group by {', '.join(keys)}: each key once", "group_by")
    if idle_by not in get_args(IdleKey):
        words = f"idle by {idle_by!r}; allowed: {', '.join(get_args(IdleKey))}"
        raise ReportError(words, "idle_by")
    zone = _zone(tz)
    begin = _moment("since", since, zone) if since else None
    end = _moment("until", until, zone) if until else now
    if begin is not None and begin >= end:
        raise ReportError(f"since {begin.isoformat()} is not before until {end.isoformat()}")
    for key in filters or {}:
        _check_key(key)
        if key in TIME_KEYS:
            raise ReportError(f"filter {key!r}: use since and until")
    return ReportQuery(
        group_by=keys,
        since=begin,
        until=end,
        tz=tz,
        filters=filters or {},
        idle_by=cast(IdleKey, idle_by),
    )


def label_of(row: Mapping[str, Any], groups: Sequence[str]) -> str:
    """What a row is called in a chart."""
    return " · ".join(str(row[key]) if row[key] else f"no {key}" for key in groups) or "all"


def called(row: Mapping[str, Any], key: str) -> Any:
    """What a row has of one group; a key's id stands behind what it is called."""
    name = row.get("key_name") if key == "key" else None
    return f"{name} ({row[key]})" if name else row.get(key)


def _check_key(key: str) -> None:
    if key.startswith(TAG):
        if not _TAG_NAME.match(key.removeprefix(TAG)):
            raise ReportError(
                f"{key!r}: a tag's name has 1 to 64 characters, no quotes", "group_by"
            )
    elif key not in GROUP_KEYS:
        words = f"group key {key!r}; allowed: {', '.join(GROUP_KEYS)}, tag:NAME"
        raise ReportError(words, "group_by")


def _zone(tz: str) -> ZoneInfo:
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ReportError(
            f"time zone {tz!r}; give an IANA name such as Europe/Berlin", "tz"
        ) from None


def _moment(what: str, text: str, zone: ZoneInfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ReportError(
            f"{what} {text!r} is no date; give RFC 3339 or YYYY-MM-DD, such as 2026-11-01", what
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    if not 1970 <= moment.year < 9999:
        raise ReportError(f"{what} {text!r} is out of range", what)
    return moment
