"""aiohttp's connectors, saying whether a request got a connection of its own or a kept one."""

from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

connection_made: ContextVar[bool] = ContextVar("connection_made", default=False)
"""In the task that sends: set where a connection was made for it. aiohttp's tracing says so, too,
for several microseconds of each request."""


class TCPConnector(aiohttp.TCPConnector):
    """To an address."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> ResponseHandler:
        connection_made.set(True)
        return await super()._create_connection(*args, **kwargs)


class UnixConnector(aiohttp.UnixConnector):
    """To a socket."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> ResponseHandler:
        connection_made.set(True)
        return await super()._create_connection(*args, **kwargs)
