"""From what an operator asks for to an override: everything is looked up and checked first."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import InvalidRequest, NotFound, Unavailable
from gateway.overrides.model import (
    CACHE,
    DRAIN,
    LONGEST_S,
    PIN_BACKEND,
    PIN_POLICY,
    Override,
    PinnedPolicy,
    Wanted,
)
from gateway.routing.policy_book import PolicyBook, UnknownPolicy
from gateway.routing.policy_history import UnknownVersion, version_text
from policies.problems import PolicyError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_FOREVER = 0.0
_MOST_WORDS = 500


class Asked:
    """Turns wishes into overrides.

    Args:
        backends: names that can be pinned and drained.
        engine: where versions of policies are that no file holds any more.
    """

    def __init__(
        self, backends: Collection[str], book: PolicyBook, engine: "AsyncEngine | None"
    ) -> None:
        self._backends = backends
        self._book = book
        self._engine = engine

    async def override(
        self,
        wanted: Wanted,
        *,
        now: float,
        version: Callable[[str], int],
        actor: str = "",
        address: str = "",
    ) -> Override:
        """What is to be written.

        Raises:
            InvalidRequest, NotFound: no such slot, backend, policy or version.
            Unavailable: the version is only in the database, which does not answer.
        """
        if not 0 < wanted.for_s <= LONGEST_S:
            raise InvalidRequest(
                f"for {wanted.for_s:,.0f} s: must be more than 0 and at most {LONGEST_S:,.0f} s "
                "(30 days).",
                param="for_s",
            )
        value = await self._value(wanted.slot, wanted.value)
        return Override(
            slot=wanted.slot,
            value=value,
            version=version(wanted.slot),
            until=now + wanted.for_s,
            actor=actor,
            address=address,
            why=wanted.why[:_MOST_WORDS],
        )

    async def _value(self, slot: str, value: str) -> Any:
        if slot == PIN_POLICY:
            return to_builtins(await self._policy(value))
        if slot == PIN_BACKEND:
            self._check_backend(value, "value")
            return value
        if slot in (f"{CACHE}exact", f"{CACHE}semantic"):
            return "off"
        if slot.startswith(DRAIN):
            self._check_backend(slot[len(DRAIN) :], "slot")
            return "drained"
        raise InvalidRequest(
            f"There is no slot {slot!r}; there are {PIN_POLICY}, {PIN_BACKEND}, {CACHE}exact, "
            f"{CACHE}semantic and {DRAIN}BACKEND.",
            param="slot",
        )

    def _check_backend(self, name: str, param: str) -> None:
        if name not in self._backends:
            known = ", ".join(sorted(self._backends))
            raise NotFound(f"There is no backend {name!r}; there are: {known}.", param=param)

    async def _policy(self, ref: str) -> PinnedPolicy:
        """The version that NAME or NAME@SHA names."""
        name, _, sha256 = ref.partition("@")
        try:
            now = self._book.get(name)
        except (UnknownPolicy, PolicyError) as error:
            if not sha256:
                raise NotFound(str(error), param="value") from None
        else:
            if now.sha256.startswith(sha256):
                return PinnedPolicy(name=name, sha256=now.sha256, text=now.text)
        if self._engine is None:
            raise Unavailable(f"The file of {name!r} is another version than {sha256!r}.")
        try:
            async with self._engine.connect() as connection:
                full, text = await version_text(connection, name, sha256)
        except UnknownVersion as error:
            raise NotFound(f"{error}.", param="value") from None
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(
                f"{ref} is not what its file says, and the database does not answer: "
                f"{str(error)[:200]}."
            ) from None
        return PinnedPolicy(name=name, sha256=full, text=text)


def lifted(slot: str, *, version: int, actor: str = "", address: str = "") -> Override:
    """The write that ends an override."""
    return Override(
        slot=slot, value=None, version=version, until=_FOREVER, actor=actor, address=address
    )
