"""The ledger's databases, and channels that write down what they are sent."""

import asyncio
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP

import msgspec
import pytest

from tests.gateway.ledger.conftest import (  # noqa: F401 (fixtures)
    database_url,
    engine,
    migrated_sqlite,
    postgres,
    settings,
    sqlite_url,
)


class Hook:
    """An HTTP server that takes messages, or refuses the first few."""

    def __init__(self) -> None:
        self.url = ""
        self.refuse = 0
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(body) for body in self.bodies]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head)}
        body = await reader.readexactly(int(headers["content-length"]))
        status = "503 Busy" if self.refuse else "204 No Content"
        if self.refuse:
            self.refuse -= 1
        else:
            self.bodies.append(body)
            self.headers.append(headers)
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    """A webhook's receiver on a free port."""
    made = Hook()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    yield made
    server.close()


class Mailbox:
    """A mail server of few words."""

    def __init__(self) -> None:
        self.address = ""
        self.mails: list[EmailMessage] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).strip().upper():
            if line == b"DATA":
                writer.write(b"354 go on\r\n")
                data = await reader.readuntil(b"\r\n.\r\n")
                self.mails.append(message_from_bytes(data[:-3], EmailMessage, policy=SMTP))
            writer.write(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")
        writer.close()


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    """A mail server on a free port, without encryption."""
    made = Mailbox()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()
