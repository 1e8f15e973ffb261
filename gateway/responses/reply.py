"""An exchange that the client holds in the Responses API's words and the pipeline in a chat's."""

import msgspec
from litestar.types import Receive, Send

from gateway.api.reply import RawHeaders, Reply
from gateway.api.translate import decode_strictly
from gateway.responses.answer import Answer
from gateway.responses.question import chat_body, own_name
from gateway.responses.wire import ResponsesRequest

_REQUEST_ID = b"x-headgate-request-id"


class ResponsesReply(Reply):
    """Translates the body on its way in, and everything on its way out."""

    __slots__ = ("_answer", "_asked", "_drop_unknown", "_dropped")

    def __init__(self, receive: Receive, send: Send, *, drop_unknown: bool) -> None:
        super().__init__(receive, send)
        self._drop_unknown = drop_unknown
        self._asked: ResponsesRequest | None = None
        self._answer: Answer | None = None
        self._dropped: list[str] = []

    async def read(self, max_bytes: int, encoding: str | None = None) -> bytes:
        """The chat body that the client's stands for.

        Raises:
            WireError, InvalidRequest: naming the field.
        """
        body = await super().read(max_bytes, encoding)
        asked, _, self._dropped, _ = decode_strictly(
            ResponsesRequest, body, drop_unknown=self._drop_unknown
        )
        self._asked = asked
        return msgspec.json.encode(chat_body(asked))

    async def whole(self, status: int, headers: RawHeaders, body: bytes, kind: bytes) -> None:
        """The response object, or an error with this API's names in it."""
        if status == 200:
            body = msgspec.json.encode(self._begun(headers).whole(msgspec.json.decode(body)))
        elif self._asked is not None:
            body = own_name(body)
        await super().whole(status, self._with_dropped(headers), body, kind)

    async def start_stream(self, headers: RawHeaders) -> None:
        self._begun(headers)
        await super().start_stream(self._with_dropped(headers))

    async def event(self, data: bytes, *, last: bool = False) -> None:
        assert self._answer is not None
        await super().event(self._answer.events(data), last=last)

    def _begun(self, headers: RawHeaders) -> Answer:
        assert self._asked is not None
        self._answer = Answer(self._asked, dict(headers)[_REQUEST_ID].decode())
        return self._answer

    def _with_dropped(self, headers: RawHeaders) -> RawHeaders:
        if not self._dropped:
            return headers
        return [*headers, (b"x-headgate-dropped", ", ".join(self._dropped).encode())]
