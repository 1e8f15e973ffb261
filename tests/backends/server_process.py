"""A server of ours as a child process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


class ServerProcess:
    """`python -m MODULE` on a port or a Unix socket.

    Attributes:
        url: its root; "http://localhost" on a Unix socket.
    """

    def __init__(self, module: str, *arguments: str, uds: Path | None = None) -> None:
        self.uds = uds
        self.port = 0 if uds is not None else _free_port()
        self.url = "http://localhost" if uds is not None else f"http://127.0.0.1:{self.port}"
        where = ["--uds", str(uds)] if uds is not None else ["--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def client(self, **options: float) -> httpx.Client:
        """A client with the server's root as base URL."""
        transport = httpx.HTTPTransport(uds=str(self.uds) if self.uds is not None else None)
        return httpx.Client(transport=transport, base_url=self.url, timeout=30, **options)  # type: ignore[arg-type]

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Until /health/ready answers 200."""
        deadline = time.monotonic() + timeout_s
        with self.client() as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    break
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health/ready").status_code == 200:
                        return
                time.sleep(0.05)
        self.process.kill()
        assert self.process.stdout is not None
        raise AssertionError(f"not ready: {self.process.stdout.read().decode()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """Ask it to end, wait, and give its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def server(module: str, *arguments: str, uds: Path | None = None) -> Iterator[ServerProcess]:
    """A ready server; stopped at the end."""
    process = ServerProcess(module, *arguments, uds=uds)
    try:
        process.wait_ready()
        yield process
    finally:
        process.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
