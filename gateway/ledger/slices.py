"""The part of a budget that this process holds, and what requests reserve of it. In memory only."""

from collections.abc import Mapping, Sequence

from gateway.ledger.budget_store import Budget, Counter
from gateway.ledger.lease_store import LeaseState


class Slice:
    """What this process holds of one counter, in nano-dollars."""

    def __init__(self) -> None:
        self.granted = 0
        """Reserved in SQL under this process's name."""
        self.held = 0
        """For requests under way."""
        self.spent = self.overrun = 0
        """Since the lease began."""
        self.booked_spent = self.booked_overrun = 0
        """The part of these that stands in SQL."""
        self.booked_held = 0
        """What SQL would count as used, should this process die now."""
        self.used = False
        """Since the last sync."""
        self.quiet = 0
        """Syncs in a row without use."""
        self.leased = False
        """SQL has its counter and its lease."""

    @property
    def free(self) -> int:
        return self.granted - self.held - (self.spent - self.booked_spent)

    @property
    def settled(self) -> bool:
        """SQL knows all there is to know, also of what is not held any more."""
        return (
            self.spent == self.booked_spent
            and self.overrun == self.booked_overrun
            and self.held >= self.booked_held
        )

    def spend(self, nano_usd: int) -> None:
        """Use what is free."""
        self.spent += nano_usd
        self.used = True

    def lease(self, owner: str) -> LeaseState:
        """What should stand in SQL now: never more taken than was granted."""
        beyond = max(self.spent - self.booked_spent - self.granted, 0)
        self.spent -= beyond
        self.overrun += beyond
        return LeaseState(
            owner=owner,
            outstanding=self.granted - (self.spent - self.booked_spent),
            held=self.held,
            spent=self.spent,
            overrun=self.overrun,
            known_spent=self.booked_spent,
            known_overrun=self.booked_overrun,
        )

    def written(self, asked: LeaseState, stands: LeaseState, more: int = 0) -> None:
        """Note that `stands`, and `more` granted, stand in SQL where `asked` should."""
        self.leased = True
        granted_then = asked.outstanding + asked.spent - asked.known_spent
        self.granted += stands.outstanding + more - granted_then
        self.spent += stands.spent - asked.spent
        self.overrun += stands.overrun - asked.overrun
        self.booked_spent, self.booked_overrun = stands.spent, stands.overrun
        self.booked_held = stands.held


class Reservation:
    """Money held for one request. End it once; ending it again changes nothing."""

    __slots__ = ("_slices", "heeded_us", "limits", "models", "nano_usd")

    def __init__(
        self,
        nano_usd: int,
        slices: Sequence[Slice],
        limits: Sequence[tuple[Counter, Budget]] = (),
        *,
        heeded_us: int | None = None,
    ) -> None:
        self.nano_usd = nano_usd
        self.limits = limits
        """Of the slices, in their order: the windows in which it began."""
        self.heeded_us = heeded_us
        """When the youngest budget was made that was known then; None: another one's part."""
        self.models: dict[str, Reservation] = {}
        """What is held of the budgets of single backends, by backend."""
        self._slices: Sequence[Slice] | None = slices

    def settle(self, actual_nano_usd: int, by_model: Mapping[str, int] | None = None) -> None:
        """Book what the request cost and give the rest back; what it cost beyond is overrun."""
        slices, self._slices = self._slices or (), None
        within = max(min(actual_nano_usd, self.nano_usd), 0)
        for part in slices:
            part.held -= self.nano_usd
            part.spent += within
            part.overrun += max(actual_nano_usd - within, 0)
            part.used = True
        for model, of_model in self.models.items():
            of_model.settle((by_model or {}).get(model, 0))

    def release(self) -> None:
        """Give everything back: nothing was used."""
        self.settle(0)
