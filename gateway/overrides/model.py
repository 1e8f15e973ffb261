"""What an override is, and what those in force mean together.

A slot holds one value at a time, and of two writers the later one wins, so copies in the database,
in Redis and in processes can be merged in any order. Lifting is a write, too: of None.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from gateway.routing.policy_book import LoadedPolicy, loaded_from
from policies.model import CacheRule
from policies.problems import PolicyError

log = structlog.get_logger(__name__)

PIN_POLICY = "pin.policy"
PIN_BACKEND = "pin.backend"
CACHE = "cache."
"""Followed by the cache: exact (which ends both) or semantic."""
DRAIN = "drain."
"""Followed by the backend."""
DEFAULT_S = 86_400.0
LONGEST_S = 30 * 86_400.0


class Override(Struct, frozen=True, kw_only=True):
    """One slot's newest value."""

    slot: str
    value: Any
    """JSON; None: lifted."""
    version: int
    """Unix microseconds of the act, or one more than the version before: the greater one wins."""
    until: float
    """Unix seconds."""
    actor: str = ""
    """As in the audit log, like the next two."""
    address: str = ""
    why: str = ""
    replaces: tuple["Override", ...] = ()
    """Those before it that the database may not know, the oldest first: for its audit log only."""

    def holds(self, now: float) -> bool:
        """Whether it is in force at `now`, unix seconds."""
        return self.value is not None and now < self.until


class PinnedPolicy(Struct, frozen=True, kw_only=True):
    """A version that decides whatever its file says; whole, so that nobody must look it up."""

    name: str
    sha256: str
    text: str

    @property
    def ref(self) -> str:
        """NAME@sha8."""
        return f"{self.name}@{self.sha256[:8]}"


class Wanted(Struct, kw_only=True, forbid_unknown_fields=True):
    """What somebody asks to be set; the body of PUT /admin/overrides."""

    slot: str
    value: str = ""
    """Of pin.policy NAME or NAME@SHA, of pin.backend a backend; nothing of the others."""
    for_s: float = DEFAULT_S
    why: str = ""
    by: str = ""
    """Who asks on the command line, for the audit log beside the key."""


class Effect(Struct, frozen=True, kw_only=True, eq=False):
    """What all overrides in force mean. Compared by identity: another effect is another object."""

    policy: LoadedPolicy | None = None
    """Decides in place of the configured one, and wherever its name is asked for."""
    backend: str | None = None
    """Answers all that it may and can."""
    cache: CacheRule | None = None
    """The most that may be used of the caches."""
    drained: dict[str, str] = {}
    """Backends that get no new requests, and why."""
    until: float = float("inf")
    """Unix seconds, when the first of them ends."""


NOTHING = Effect()


def effect_of(overrides: Iterable[Override], now: float) -> Effect:
    """What they mean together. Slots that this version does not know mean nothing."""
    policy: LoadedPolicy | None = None
    backend: str | None = None
    cache: CacheRule | None = None
    drained: dict[str, str] = {}
    until = float("inf")
    for one in overrides:
        if not one.holds(now):
            continue
        until = min(until, one.until)
        if one.slot == PIN_POLICY:
            policy = _loaded(one.value)
        elif one.slot == PIN_BACKEND:
            backend = str(one.value)
        elif one.slot == f"{CACHE}exact":
            cache = "off"
        elif one.slot == f"{CACHE}semantic":
            cache = cache or "exact"
        elif one.slot.startswith(DRAIN):
            drained[one.slot[len(DRAIN) :]] = f"drained by an operator until {utc(one.until)}"
    if until == float("inf"):
        return NOTHING
    return Effect(policy=policy, backend=backend, cache=cache, drained=drained, until=until)


def shown(override: Override) -> dict[str, Any]:
    """As anybody may see it: without who did it, and a policy by its name only."""
    value = override.value
    if override.slot == PIN_POLICY:
        value = msgspec.convert(value, PinnedPolicy).ref
    return {
        "slot": override.slot,
        "value": value,
        "since": utc(override.version / 1e6),
        "until": utc(override.until),
    }


def utc(unix_s: float) -> str:
    """RFC 3339."""
    text = datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
    return text.replace("+00:00", "Z")


def _loaded(value: Any) -> LoadedPolicy | None:
    pinned = msgspec.convert(value, PinnedPolicy)
    try:
        return loaded_from(pinned.name, pinned.text, pinned.sha256, "pinned")
    except PolicyError as error:
        # pinned by a newer version of ours, say: the policy's file goes on deciding
        log.error("pinned_policy_invalid", policy=pinned.ref, problems=str(error))
        return None
