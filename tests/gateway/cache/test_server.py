"""The private Redis: what it keeps."""

import signal
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from gateway.cache.server import redis_command


def test_private_redis_keeps_its_entries_over_a_restart(tmp_path: Path) -> None:
    """Ended by SIGTERM it writes its dump, and reads it when it is back."""
    socket = tmp_path / "redis.sock"

    def run(command: str, *arguments: str) -> object:
        server = subprocess.Popen(redis_command(socket, tmp_path, 16 << 20))
        try:
            return _ask(socket, command, *arguments)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)

    assert run("SET", "answer", "5")
    assert run("GET", "answer") == b"5"
    assert (tmp_path / "cache.rdb").is_file()


def _ask(socket: Path, *command: str) -> object:
    """As soon as it answers."""
    deadline = time.monotonic() + 30
    with Redis(unix_socket_path=str(socket)) as client:
        while True:
            try:
                return client.execute_command(*command)
            except RedisError:
                assert time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.02)
