"""What is found, and what becomes of it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct, field

from gateway.alerts.settings import Kind

Severity = Literal["info", "warning", "critical"]
Event = Literal["opened", "resolved", "test", "report"]


def moment(at: float) -> str:
    """Unix seconds as RFC 3339, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


class Finding(Struct, frozen=True, kw_only=True):
    """Something is wrong now. The same key is the same thing, however often it is found."""

    key: str
    kind: Kind
    severity: Severity = "warning"
    title: str
    """One line, with the figure."""
    text: str = ""
    """What is behind it, and what to do."""
    facts: Mapping[str, str | float | int] = field(default_factory=dict)


class Alert(Struct, frozen=True, kw_only=True):
    """A finding with its life."""

    id: str
    key: str
    kind: str
    severity: Severity
    title: str
    text: str
    facts: Mapping[str, str | float | int]
    opened_at: float
    """Unix seconds."""
    seen_at: float
    """Of the last look that found it."""
    resolved_at: float | None = None


class Message(Struct, frozen=True, kw_only=True):
    """What one channel is told."""

    id: str
    """Of the delivery: the same however often it is tried."""
    event: Event
    kind: str
    severity: Severity
    title: str
    text: str
    facts: Mapping[str, str | float | int] = field(default_factory=dict)
    opened_at: float | None = None
    resolved_at: float | None = None
    attempt: int = 1
    """From 2 on the message may have arrived before."""
    html: str = ""
    """A whole file, of reports."""
