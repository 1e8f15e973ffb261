"""Whose data it is, and what a store must be able to do with it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

EXPORTS = "exports"
"""Folder of `headgate report export` in the state folder."""
SubjectKind = Literal["team", "user", "key"]


class Subject(Struct, frozen=True, kw_only=True):
    """A team, a user (as named in requests) or a key (its id), with what belongs to it."""

    kind: SubjectKind
    name: str
    row_id: str | None
    """What rows of the ledger hold in its place; None: there are none. A key's id itself."""
    request_ids: frozenset[str]
    """Its requests."""
    also: tuple[tuple[SubjectKind, str], ...] = ()
    """A team's keys, and its users who are in no other team."""

    @property
    def everybody(self) -> tuple[tuple[SubjectKind, str], ...]:
        """(kind, name) of the subject and all that goes with it."""
        return ((self.kind, self.name), *self.also)

    def names(self, *kinds: SubjectKind) -> list[str]:
        """The names of these kinds."""
        return [name for kind, name in self.everybody if kind in kinds]

    def is_of(self, *, team: Any = None, user: Any = None, key: Any = None) -> bool:
        """Whether something marked like that is the subject's."""
        marks: Mapping[SubjectKind, Any] = {"team": team, "user": user, "key": key}
        return any(marks[kind] == name for kind, name in self.everybody)


class Places(Struct, frozen=True, kw_only=True):
    """Where the stores are."""

    settings: Settings
    engine: "AsyncEngine"
    redis: Any
    """A redis.asyncio.Redis, whose stubs mix sync and async. None: it does not run, or the caches
    are in the gateways' memory."""

    @property
    def state_dir(self) -> Path:
        return Path(self.settings.state_dir)


class Store(Protocol):
    """One row of docs/data.md."""

    name: str
    """As docs/data.md calls it."""

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        """What the store holds of the subject, for people to read."""
        ...

    async def delete(self, places: Places, subject: Subject) -> int:
        """Remove it; how many things were removed."""
        ...


class DeletionError(Exception):
    """Something is left, and why."""


def matches(texts: Iterable[str], subject: Subject) -> bool:
    """Whether a name stands in one of the texts as a whole JSON string or scope."""
    marks = [f'"{name}"' for _, name in subject.everybody]
    marks += [f"{kind}:{name}" for kind, name in subject.everybody]
    return any(mark in text for text in texts for mark in marks)
