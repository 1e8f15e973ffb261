"""The part of a budget that this process holds, and what requests reserve of it. In memory only."""

from collections.abc import Sequence

from gateway.ledger.budget_store import LeaseState


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
        self.used = False
        """Since the last sync."""

    @property
    def free(self) -> int:
        return self.granted - self.held - (self.spent - self.booked_spent)

    @property
    def settled(self) -> bool:
        """SQL knows all there is to know."""
        return self.spent == self.booked_spent and self.overrun == self.booked_overrun

    def lease(self, owner: str) -> LeaseState:
        """What should stand in SQL now."""
        return LeaseState(
            owner=owner,
            outstanding=self.held + max(self.free, 0),
            spent=self.spent,
            overrun=self.overrun,
            known_spent=self.booked_spent,
            known_overrun=self.booked_overrun,
        )

    def written(self, lease: LeaseState, more: int = 0) -> None:
        """Note that `lease`, and `more` granted, stand in SQL."""
        self.granted = lease.outstanding + more
        self.booked_spent, self.booked_overrun = lease.spent, lease.overrun


class Reservation:
    """Money held for one request. End it once; ending it again changes nothing."""

    def __init__(self, nano_usd: int, slices: Sequence[Slice]) -> None:
        self.nano_usd = nano_usd
        self._slices: Sequence[Slice] | None = slices

    def settle(self, actual_nano_usd: int) -> None:
        """Book what the request cost and give the rest back; what it cost beyond is overrun."""
        slices, self._slices = self._slices or (), None
        within = max(min(actual_nano_usd, self.nano_usd), 0)
        for part in slices:
            part.held -= self.nano_usd
            part.spent += within
            part.overrun += max(actual_nano_usd - within, 0)
            part.used = True

    def release(self) -> None:
        """Give everything back: nothing was used."""
        self.settle(0)
