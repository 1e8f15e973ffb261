"""The transport under calls of backends: what servers do with a connection, and what httpx says."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from backends.http1 import Http1Transport
from tests.backends.raw_upstream import RawUpstream, http, raw_upstream

OK = http("200 OK", b"fine")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def transport_to(
    url: str, *, keepalive_s: float = 4.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Http1Transport]:
    """A transport, closed in the end."""
    transport = Http1Transport(httpx.URL(url), keepalive_s=keepalive_s, tls=tls)
    try:
        yield transport
    finally:
        await transport.aclose()


async def ask(
    transport: Http1Transport, url: str, *, read_s: float = 5.0, **headers: str
) -> httpx.Response:
    """A POST whose answer is read to its end and released."""
    request = httpx.Request(
        "POST",
        f"{url}/x?y=1",
        headers=headers,
        content=b"question",
        extensions={"timeout": {"connect": 5.0, "read": read_s}},
    )
    async with asyncio.timeout(20):
        response = await transport.handle_async_request(request)
        await response.aread()
    return response


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ([OK], b"fine"),
        ([http("200 OK", b"")], b""),
        ([OK[:20], OK[20:-2], OK[-2:]], b"fine"),
        ([CHUNKED, b"2\r\nfi\r\n", b"2;a=b\r\nne\r\n0\r\nTrailer: t\r\n\r\n"], b"fine"),
        ([b"HTTP/1.1 200 OK\r\n\r\nfi", b"ne"], b"fine"),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nfine"], b"fine"),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK], b"fine"),
        ([OK + OK], b"fine"),
        ([http("200 OK", b"x" * 2_000_000)], b"x" * 2_000_000),
    ],
)
async def test_bodies_are_whole_however_they_are_framed(pieces: list[bytes], body: bytes) -> None:
    """By length, in chunks, up to the connection's end; after hints; cut anywhere; twice over."""
    async with raw_upstream(*pieces) as upstream, transport_to(upstream.url) as transport:
        for _ in range(2):
            response = await ask(transport, upstream.url)
            assert (response.status_code, response.content) == (200, body)
            assert "link" not in response.headers
    assert upstream.requests[0].startswith(b"POST /v1/x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert upstream.requests[0].endswith(b"\r\nContent-Length: 8\r\n\r\nquestion")


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (OK, True),
        (http("204 No Content", b""), True),
        (http("200 OK", b"fine", "Connection: close"), False),
        (OK.replace(b"1.1", b"1.0"), False),
        (OK + b"more", False),
    ],
)
async def test_connections_are_kept_where_their_answer_says_so(answer: bytes, kept: bool) -> None:
    """Not if the server will close, nor if it goes on speaking."""
    async with raw_upstream(answer) as upstream, transport_to(upstream.url) as transport:
        for _ in range(3):
            await ask(transport, upstream.url)
    assert upstream.connections == (1 if kept else 3)


async def test_an_answer_that_nobody_read_leaves_no_trace() -> None:
    """Its connection is closed, and the next answer is the next question's."""
    long = http("200 OK", b"x" * 1_000_000)
    async with raw_upstream(OK) as upstream, transport_to(upstream.url) as transport:
        upstream.by_path = [(b"/v1/long", long)]
        request = httpx.Request("GET", f"{upstream.url}/long")
        response = await transport.handle_async_request(request)
        await response.aclose()
        assert (await ask(transport, upstream.url)).content == b"fine"
    assert upstream.connections == 2


async def test_servers_wait_for_slow_readers() -> None:
    """What nobody reads yet stays at the server, beyond some 100 KB; all of it arrives."""
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
        while sent < 64_000_000:
            writer.write(b"x" * 64_000)
            sent += 64_000
            await writer.drain()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, transport_to(url) as transport:
        response = await transport.handle_async_request(httpx.Request("GET", url))
        before = -1
        while sent != before:  # until it stands still
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 64_000_000
        assert len(await response.aread()) == 64_000_000


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"SSH-2.0-OpenSSH\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, httpx.RemoteProtocolError),
        (CHUNKED + b"4\r\nfine\r\n", httpx.ReadError),
        (CHUNKED + b"no number\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200", httpx.ReadError),
        (b"", httpx.ReadError),
    ],
)
async def test_broken_answers_are_errors_of_httpx(answer: bytes, kind: type[Exception]) -> None:
    """Words of no HTTP, heads without end, bodies cut short."""
    async with raw_upstream(answer) as upstream, transport_to(upstream.url) as transport:
        with pytest.raises(kind):
            await ask(transport, upstream.url)


async def test_a_body_shorter_than_said_is_an_error() -> None:
    """Although its connection ended in order."""
    async with raw_upstream(OK) as upstream, transport_to(upstream.url) as transport:
        await ask(transport, upstream.url)
        upstream.stale = OK[:-1]
        with pytest.raises(httpx.ReadError):
            await ask(transport, upstream.url)


@pytest.mark.parametrize("answer", [b"", CHUNKED + b"4\r\nfine\r\n"])
async def test_silence_is_a_read_timeout(answer: bytes) -> None:
    """Before the head and amid the body; the timer of a longer wait before it does not matter."""
    async with (
        raw_upstream(answer, hold_open=True) as upstream,
        transport_to(upstream.url) as transport,
    ):
        upstream.by_path = [(b"/v1/well", OK)]
        request = httpx.Request("GET", f"{upstream.url}/well")
        await (await transport.handle_async_request(request)).aread()
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, upstream.url, read_s=0.05)


async def test_closing_ends_every_wait() -> None:
    """Who waits for an answer hears that the connection is gone."""
    async with raw_upstream(hold_open=True) as upstream, transport_to(upstream.url) as transport:
        waiting = asyncio.create_task(ask(transport, upstream.url))
        await upstream.asked.wait()
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await waiting


async def test_connections_without_requests_are_closed() -> None:
    """After `keepalive_s`, by themselves."""
    async with (
        raw_upstream(OK) as upstream,
        transport_to(upstream.url, keepalive_s=0.05) as transport,
    ):
        await ask(transport, upstream.url)
        async with asyncio.timeout(20):
            await upstream.closed.wait()
        await ask(transport, upstream.url)
    assert upstream.connections == 2


@pytest.mark.parametrize("value", ["a\nb", "a\r\nInjected: yes", "a\rb"])
async def test_headers_with_line_breaks_are_not_sent(value: str) -> None:
    """They would be headers of their own."""
    async with raw_upstream(OK) as upstream, transport_to(upstream.url) as transport:
        with pytest.raises(httpx.LocalProtocolError, match="line break"):
            await ask(transport, upstream.url, key=value)
    assert upstream.requests == []


async def test_refused_connections_say_why() -> None:
    """In the system's words."""
    async with transport_to("http://127.0.0.1:1/v1") as transport:
        with pytest.raises(httpx.ConnectError, match=r"(?i)connect"):
            await ask(transport, "http://127.0.0.1:1/v1")


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """A key and a certificate for localhost that nobody else knows."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    made = tmp_path / "localhost.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(made), "-out", str(tmp_path / "certificate")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    with made.open("ab") as file:
        file.write((tmp_path / "certificate").read_bytes())
    return made


async def test_tls_is_spoken_and_certificates_are_looked_at(pem: Path) -> None:
    """A server that the context trusts answers; one that nobody knows is a ConnectError."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(pem)
    upstream = RawUpstream([OK])
    server = await asyncio.start_server(upstream.handle, "localhost", 0, ssl=ours)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    trusting = ssl.create_default_context(cafile=str(pem))
    async with server, transport_to(url, tls=trusting) as transport:
        for _ in range(2):
            assert (await ask(transport, url)).content == b"fine"
        assert upstream.connections == 1
        async with transport_to(url, tls=ssl.create_default_context()) as wary:
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                await ask(wary, url)
