"""Fixtures that several rooms share, and what keeps tests quick: one thread, memory for disk."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import AF_UNIX, socket

import pytest

from gateway.cache.server import redis_command

# Tensors of tests are small, and tests run side by side: OpenMP's threads would wait for each other
# five times as long as they work. Tests of several threads ask for them. Read when torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_MEMORY = Path("/dev/shm")
"""A file system in memory, where fsync costs nothing."""
_NEEDED_BYTES = 4 << 30


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders lie in memory, unless somebody says where: kill -9 does not empty it."""
    if config.option.basetemp is None and _is_usable(_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files (`pytestmark = pytest.mark.long`) first: one that came last would end alone."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def _is_usable(folder: Path) -> bool:
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(folder).free >= _NEEDED_BYTES


class RedisServer:
    """A real Redis on a Unix socket, which tests may kill and bring back."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = redis_command(self.socket, self._folder, 64 << 20)
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server did not start within 10 s"
            assert self._process.poll() is None, "redis-server ended at once"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with closing(socket(AF_UNIX)) as probe:
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(7).startswith(b"+PONG")
            except OSError:
                return False


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A fresh, running Redis."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
