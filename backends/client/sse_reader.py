"""Server-sent events out of bytes, wherever the network cut them."""

_MAX_EVENT_BYTES = 16 * 1024 * 1024


class SSEReader:
    """Collects bytes; `feed` returns the data of every event that became complete.

    Understands LF, CRLF and CR line ends, comments, events of several data lines, a byte order
    mark; ignores event names and ids.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._at_start = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each completed event, in order.

        Raises:
            ValueError: one line is longer than 16 MiB.
        """
        text = self._rest + chunk
        if self._at_start and len(text) >= 3:
            self._at_start = False
            text = text.removeprefix(b"\xef\xbb\xbf")
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):
                # The LF of this CR may be in the next chunk.
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = text.split(b"\n")
        self._rest = lines.pop() + held
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise ValueError("a server-sent event is longer than 16 MiB")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data = []
        return events
