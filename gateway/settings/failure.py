"""[failure]: what happens when backends fail. Policies may say otherwise for their requests."""

from typing import Annotated

from msgspec import Meta, Struct

from backends.client.breaker import BreakerSettings

_Seconds = Annotated[float, Meta(gt=0)]


class FailureSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[failure]"""

    retries: Annotated[int, Meta(ge=0, le=10)] = 1
    """How often the last backend of a request's chain is asked again, where its policy does not
    say; the others are not, as there is a next one."""
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Second calls (retries and hedges) per first call, in the long run: an outage must not become
    a flood."""
    backoff_s: _Seconds = 0.1
    """Mean pause before the first retry of a backend; it doubles with each one. 0 to twice that,
    by chance."""
    backoff_max_s: _Seconds = 1.0
    """Longest mean pause; a backend whose Retry-After is longer than twice that is not retried."""
    failures_to_open: Annotated[int, Meta(ge=1)] = 3
    """Failures in a row after which a backend, or one address of it, is left alone."""
    open_s: _Seconds = 1.0
    """For how long the first time; it doubles each time."""
    open_max_s: _Seconds = 30.0
    """Longest; then one request at a time tries."""

    @property
    def breaker(self) -> BreakerSettings:
        """The part that breakers know."""
        return BreakerSettings(
            failures_to_open=self.failures_to_open,
            open_s=self.open_s,
            open_max_s=self.open_max_s,
        )
