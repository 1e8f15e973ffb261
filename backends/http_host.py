"""Runs an ASGI app in this process on a port or a Unix socket: drains, and dies with its parent.

One process, one event loop, one Granian server. SIGTERM and SIGINT drain: running requests
finish, new ones get 503 with Retry-After; a second signal, or the time limit, ends them.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from granian.constants import Interfaces
from granian.server.embed import Server

from backends.wire import error_body

_HEALTH_PATHS = ("/health", "/health/live", "/health/ready")
_PARENT_POLL_S = 0.5
_MOST_CONNECTIONS = 16_384
"""Granian drops connections above this; how much runs at once is the backend's to say."""

App = Callable[..., Awaitable[None]]
"""An ASGI application."""
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Door:
    """The ASGI app in front of the app: counts requests, turns away while draining, checks keys.

    While draining, what is only read (usage, clock, metrics) is still answered.

    Attributes:
        in_flight: requests inside, health checks not counted.
        draining: set once, never taken back.
    """

    def __init__(self, app: App, *, api_keys: Sequence[str] = ()) -> None:
        self.in_flight = 0
        self.draining = False
        self._app = app
        self._api_keys = [f"Bearer {key}".encode() for key in api_keys]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Handle one request."""
        path = scope.get("path", "")
        if path in _HEALTH_PATHS:
            if self.draining and path != "/health/live":
                body = {"status": "draining", "ready": False, "in_flight": self.in_flight}
                await _answer(send, 503, body, [(b"retry-after", b"1")])
            else:
                await self._app(scope, receive, send)
            return
        if not self._admits(scope):
            body = error_body(
                "Incorrect API key.", kind="invalid_request_error", code="invalid_api_key"
            )
            await _answer(send, 401, body)
            return
        if self.draining and scope.get("method") != "GET":
            body = error_body(
                "This server is shutting down; try again.", kind="server_error", code="draining"
            )
            await _answer(send, 503, body, [(b"retry-after", b"1")])
            return
        self.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.in_flight -= 1

    def _admits(self, scope: dict[str, Any]) -> bool:
        if not self._api_keys:
            return True
        sent = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        return any(hmac.compare_digest(sent, key) for key in self._api_keys)


def run(
    make_app: Callable[[], App],
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
    api_keys: Sequence[str] = (),
    parent_pid: int | None = None,
    drain_timeout_s: float = 30.0,
    on_exit: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal, after a line on stdout that says where. `make_app` is called inside
    the event loop; `on_exit` after the last request.

    Raises:
        OSError: the address is in use or cannot be bound.
    """
    if parent_pid is not None:
        die_with_parent(parent_pid, uds)
    _check_address(host, port, uds)
    logging.getLogger("_granian").setLevel(logging.WARNING)
    try:
        uvloop.run(_serve(make_app, name, host, port, uds, api_keys, drain_timeout_s))
    finally:
        on_exit()
        if uds is not None:
            uds.unlink(missing_ok=True)


def die_with_parent(parent_pid: int, uds: Path | None = None) -> None:
    """Exit this process at once when its parent is no longer `parent_pid`."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_PARENT_POLL_S)
        if uds is not None:
            uds.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


async def _serve(
    make_app: Callable[[], App],
    name: str,
    host: str,
    port: int,
    uds: Path | None,
    api_keys: Sequence[str],
    drain_timeout_s: float,
) -> None:
    door = Door(make_app(), api_keys=api_keys)
    server = Server(
        door,
        address=host,
        port=port,
        uds=uds,
        interface=Interfaces.ASGINL,
        websockets=False,
        backlog=1024,
        backpressure=_MOST_CONNECTIONS,
        log_enabled=False,
    )
    if uds is not None:
        server.uds_permissions = 0o600
    hurry = asyncio.Event()

    def on_signal() -> None:
        (hurry if door.draining else drain).set()

    drain = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve())
    asked = asyncio.create_task(drain.wait())
    # Granian binds within its task's first step.
    await asyncio.sleep(0.01)
    if not serving.done():
        where = f"unix:{uds}" if uds is not None else f"http://{host}:{port}"
        sys.stdout.write(f"{name} ready on {where}\n")
        sys.stdout.flush()
    await asyncio.wait([serving, asked], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
        return
    door.draining = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_timeout_s):
            while door.in_flight and not hurry.is_set():  # noqa: ASYNC110 - a poll is enough here
                await asyncio.sleep(0.02)
    server.stop()  # type: ignore[no-untyped-call]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(serving, 0.5 if hurry.is_set() else 5.0)


def _check_address(host: str, port: int, uds: Path | None) -> None:
    """Refuse an address in use: Granian would share it. Remove a dead server's socket."""
    if uds is None:
        with socket.create_server((host, port), reuse_port=False):
            return
    uds.parent.mkdir(parents=True, exist_ok=True)
    if not uds.exists():
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(uds))
        except OSError:
            uds.unlink()
            return
    raise OSError(f"another server listens on {str(uds)!r}")


async def _answer(
    send: Send, status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    fixed = [(b"content-type", b"application/json")]
    await send(
        {"type": "http.response.start", "status": status, "headers": fixed + (headers or [])}
    )
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})
