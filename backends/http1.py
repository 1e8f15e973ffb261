"""HTTP/1.1 to one address, as a transport of httpx: what calls of models need, and nothing else.

httptools (llhttp) parses. No redirects, cookies, proxies or HTTP/2: an API's address needs none of
them, and every request would pay.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import cast

import aiohappyeyeballs
import httptools
import httpx

_HAPPY_EYEBALLS_S = 0.25
_STALE_WITHIN_S = 1.0
"""A connection that its server had closed fails within a round trip; what breaks later was at
work on the request, and asking again is for the caller to decide."""
_MAX_HEAD_BYTES = 64 << 10
_MAX_UNREAD_BYTES = 256 << 10
"""Of an answer that nobody reads; then its server has to wait."""


class Http1Transport(httpx.AsyncBaseTransport):
    """Connections to one address, over TCP, TLS or a Unix socket, kept between requests.

    Requests are GET or POST, whole in memory, with all headers they need (`Host`, too). A kept
    connection that turns out to be closed gives its request one new connection.

    Args:
        url: of the server; its path does not matter.
        uds: the Unix socket to connect to instead.
        tls: of https URLs.
        keepalive_s: longest a connection is kept without a request.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        uds: str | None = None,
        tls: ssl.SSLContext | None = None,
        keepalive_s: float,
    ) -> None:
        self._host = url.host
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._uds = uds
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        """The one that answered last at the end."""
        self._sweeper: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer; reading its body may raise the same errors as this.

        The extension `timeout` has `connect` and `read` in seconds; `read` is the longest silence.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout: nothing was sent.
            httpx.ReadTimeout: the server fell silent.
            httpx.ReadError: the connection was lost.
            httpx.RemoteProtocolError: what came is no HTTP.
            httpx.LocalProtocolError: a header holds a line break.
        """
        timeout = request.extensions.get("timeout", {})
        message = _encoded(request)
        silence_s: float | None = timeout.get("read")
        kept = self._kept()
        if kept is not None:
            try:
                return await kept.ask(message, silence_s)
            except httpx.ReadError:
                if not kept.was_stale():
                    raise
        connection = await self._connect(timeout.get("connect"))
        return await connection.ask(message, silence_s)

    async def aclose(self) -> None:
        """Close all connections, those that answer, too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.close()

    def _kept(self) -> "_Connection | None":
        oldest = asyncio.get_running_loop().time() - self._keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, timeout_s: float | None) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if self._uds is not None:
                    _, connection = await loop.create_unix_connection(
                        lambda: _Connection(self), self._uds
                    )
                    return connection
                _, connection = await loop.create_connection(
                    lambda: _Connection(self),
                    sock=await _connected(self._host, self._port),
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
                return connection
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        except OSError as error:  # of TLS, too
            raise httpx.ConnectError(error.strerror or str(error)) from error

    def opened(self, connection: "_Connection") -> None:
        """It is connected."""
        self._connections.add(connection)

    def keep(self, connection: "_Connection") -> None:
        """For the next request."""
        self._idle.append(connection)
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(self._keepalive_s, self._sweep)

    def forget(self, connection: "_Connection") -> None:
        """It is closed."""
        self._connections.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what has been kept for too long."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keepalive_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.pop(0).close()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_since + self._keepalive_s, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection: one request at a time, and what has come of its answer."""

    def __init__(self, pool: Http1Transport) -> None:
        self.idle_since = 0.0
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: httpx.TransportError | None = None
        self._busy = False
        self._paused = False
        self._status = 0
        self._whole = False

    async def ask(self, message: bytes, silence_s: float | None) -> httpx.Response:
        """Send a request; the head of its answer."""
        self._silence_s = silence_s
        self._asked_at = self._loop.time()
        self._status = 0  # the head has not come
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._unread = 0
        """Bytes since somebody read."""
        self._touched = False
        """Something has come."""
        self._whole = False
        self._reusable = False
        self._busy = True
        try:
            self._transport.write(message)
            while not self._status:
                await self._wait()
        except BaseException:
            self.close()
            raise
        return httpx.Response(
            self._status,
            headers=self._headers,
            stream=_Body(self),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": self._reason},
        )

    def was_stale(self) -> bool:
        """Whether it had been closed before the request that just failed came."""
        return not self._touched and self._loop.time() - self._asked_at <= _STALE_WITHIN_S

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        while True:
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces.clear()
                self._unread = 0
                if self._paused:
                    self._paused = False
                    self._transport.resume_reading()
                yield data
            elif self._whole:
                return
            else:
                await self._wait()

    def release(self) -> None:
        """Nobody reads on: keep it for the next request, if this one's answer is over."""
        if not self._busy:
            return
        usable = self._reusable and self._error is None and not self._paused
        if usable and not self._transport.is_closing():
            self._busy = False
            self.idle_since = self._loop.time()
            self._pool.keep(self)
        else:
            self.close()

    def close(self) -> None:
        """At once."""
        self._busy = False
        self._transport.abort()

    async def _wait(self) -> None:
        """Until something more has come, or nothing will."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        if self._silence_s is not None:
            self._give_up_at(self._loop.time() + self._silence_s)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _give_up_at(self, when: float) -> None:
        """One timer serves many waits: it looks again when it comes too early."""
        self._silent_until = when
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._silent_until:
            self._timer = self._loop.call_at(self._silent_until, self._look)
        else:
            self._fail(httpx.ReadTimeout(f"silent for {self._silence_s:g} s"))

    def _fail(self, error: httpx.TransportError) -> None:
        self._error = self._error or error
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.close()  # it speaks without being asked
            return
        self._touched = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(str(error)))
            return
        self._unread += len(data)
        if not self._status and self._unread > _MAX_HEAD_BYTES:
            self._fail(httpx.RemoteProtocolError("the head has no end"))
        if self._unread > _MAX_UNREAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, why: Exception | None) -> None:
        self._pool.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        if not self._whole and self._error is None:
            if why is None and self._status and not self._is_framed():
                self._whole = True
            else:
                self._error = httpx.ReadError(str(why or "the server closed the connection"))
                self._error.__cause__ = why
        self._wake()

    def _is_framed(self) -> bool:
        """Whether the head says where the body ends; else the connection's end does."""
        framing = (b"content-length", b"transfer-encoding")
        return any(name.lower() in framing for name, _ in self._headers)

    # What httptools calls

    def on_message_begin(self) -> None:
        if self._whole:
            raise ValueError("a second answer to one request")

    def on_status(self, reason: bytes) -> None:
        self._reason = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
        else:  # 103 and its like: the answer follows
            self._headers = []

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._status:
            self._whole = True
            self._reusable = self._parser.should_keep_alive()


class _Body(httpx.AsyncByteStream):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.pieces()

    async def aclose(self) -> None:
        self._connection.release()


def _encoded(request: httpx.Request) -> bytes:
    """As it goes over the wire."""
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
        raise httpx.LocalProtocolError("a header holds a line break")
    return b"%b\r\n\r\n%b" % (head, request.read())


async def _connected(host: str, port: int) -> socket.socket:
    """To the first of the host's addresses that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    made = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_HAPPY_EYEBALLS_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made
