"""The ledger's databases, and channels that write down what they are sent."""

import asyncio
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from tests.gateway.ledger.conftest import (  # noqa: F401 (fixtures)
    database_url,
    engine,
    migrated_sqlite,
    postgres,
    settings,
    sqlite_url,
)
from tests.gateway.webhooks import Hook, hooked


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    """A webhook's receiver on a free port."""
    async with hooked() as made:
        yield made


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
