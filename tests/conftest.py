"""Fixtures that several rooms share: a real Redis, the shared corpus."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import AF_UNIX, socket

import pytest

from gateway.cache.server import redis_command


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
