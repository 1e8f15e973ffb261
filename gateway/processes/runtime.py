"""What the supervisor tells the gateway's workers: the settings and where everything listens."""

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from gateway.settings import Settings

RUNTIME_ENV = "HEADGATE_RUNTIME"
RUNTIME_FILE = "runtime.json"
"""In the run folder, while a gateway runs."""


class Address(Struct, frozen=True, kw_only=True):
    """Where a backend listens: a Unix socket, or base URLs."""

    uds: str | None = None
    replicas: tuple[str, ...] = ()
    """Further Unix sockets."""
    base_urls: tuple[str, ...] = ()


class Runtime(Struct, frozen=True, kw_only=True):
    """Written once by the supervisor, read by every worker; never edited."""

    settings: Settings
    addresses: dict[str, Address] = field(default_factory=dict)
    """By backend name."""
    encoder: Address | None = None
    """The semantic cache's encoder; None: no semantic cache."""
    redis_url: str | None = None
    """None: the memory store."""
    database_url: str
    """An async SQLAlchemy URL."""
    state_dir: str
    run_dir: str
    """Short folder for sockets."""
    started_at: float
    """Unix seconds."""
    foreign_meters: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Machines behind other people's servers → their meter's file, and the first place there that
    is for gateway processes."""

    def save(self, path: Path) -> None:
        """Write as JSON, readable by this user only (it may hold a database password)."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Runtime":
        """Read the file that $HEADGATE_RUNTIME (or `path`) names.

        Raises:
            RuntimeError: not started by `headgate serve`.
        """
        chosen: Any = path or os.environ.get(RUNTIME_ENV)
        if not chosen:
            raise RuntimeError(f"${RUNTIME_ENV} is not set; start the gateway by `headgate serve`")
        return msgspec.json.decode(Path(chosen).read_bytes(), type=cls)


def database_url(settings: Settings) -> str:
    """The async SQLAlchemy URL that `[database] url` stands for."""
    url = settings.database.url
    if url == "sqlite":
        return f"sqlite+aiosqlite:///{Path(settings.state_dir) / 'headgate.db'}"
    if url.startswith("postgresql://"):
        return url.replace("postgresql://", "postgresql+asyncpg://", 1)
    return url
