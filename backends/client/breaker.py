"""A circuit breaker: pure state, fed with outcomes and a clock, for a backend or one address of it.

closed: everything passes. After `failures_to_open` failures in a row it opens for a pause that
doubles each time, up to `open_max_s`. half_open: the pause is over, and one trial at a time passes;
a success closes the breaker, a failure opens it again.

Source: Nygard 2007, "Release It!", chapter 5.
"""

from typing import Literal

from msgspec import Struct

BreakerState = Literal["closed", "open", "half_open"]


class BreakerSettings(Struct, frozen=True, kw_only=True):
    """When a breaker opens, and for how long."""

    failures_to_open: int = 3
    open_s: float = 1.0
    open_max_s: float = 30.0


class Breaker(Struct, eq=False):
    """One breaker; times are seconds of the caller's clock."""

    settings: BreakerSettings = BreakerSettings()
    failures: int = 0
    """In a row."""
    opened: int = 0
    """How often it opened in a row; 0: it is closed."""
    open_until: float = 0.0
    error: str = ""
    """What the last failure said."""
    trial: bool = False
    """A trial is under way."""

    def state(self, now: float) -> BreakerState:
        """Where it stands at `now`."""
        if not self.opened:
            return "closed"
        return "open" if now < self.open_until else "half_open"

    def admits(self, now: float) -> bool:
        """Whether a request may pass now; one that passes half-open is the trial."""
        if not self.opened:
            return True
        if now < self.open_until or self.trial:
            return False
        self.trial = True
        return True

    def success(self) -> bool:
        """A request was answered; whether that closed the breaker."""
        was_open = bool(self.opened)
        if was_open or self.failures:
            self.close()
        return was_open

    def failure(self, now: float, error: str = "", at_least_s: float = 0.0) -> bool:
        """A request failed; whether that opened the breaker, for at least so long."""
        self.failures += 1
        self.error, self.trial = error, False
        if self.failures < self.settings.failures_to_open or now < self.open_until:
            return False
        self.open_until = now + max(self.pause_s(), min(at_least_s, self.settings.open_max_s))
        self.opened += 1
        return True

    def pause_s(self) -> float:
        """For how long it opens next."""
        settings = self.settings
        return min(settings.open_max_s, settings.open_s * 2.0 ** min(self.opened, 32))

    def release(self) -> None:
        """The trial ended without a verdict: its client left, or it never got a place."""
        self.trial = False

    def eject(self, now: float, error: str) -> bool:
        """Open it whatever the count says; whether it was not open."""
        self.failures = max(self.failures, self.settings.failures_to_open - 1)
        return self.failure(now, error)

    def close(self) -> None:
        """As new."""
        self.failures = self.opened = 0
        self.open_until = 0.0
        self.error, self.trial = "", False

    def adopt(self, opened: int, open_until: float, error: str) -> None:
        """Take over what another process found out."""
        if not opened:
            self.close()
            return
        self.opened, self.open_until, self.error = opened, open_until, error
        self.failures = max(self.failures, self.settings.failures_to_open)
        self.trial = False
