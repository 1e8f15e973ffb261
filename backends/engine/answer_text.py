"""From an answer's tokens to its text, up to a stop string, and never part of one too early."""

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text, whole UTF-8 characters at a time."""

    def push(self, token_ids: Sequence[int], /) -> str:
        """The text that these tokens complete."""
        ...

    def flush(self) -> str:
        """What is left at the end."""
        ...


class AnswerText:
    """The text of one answer as it grows.

    Text that could be the beginning of a stop string is held back until it is known not to be.
    """

    __slots__ = ("_detokenizer", "_held", "_longest", "_stops")

    def __init__(self, detokenizer: Detokenizer, stops: tuple[str, ...] = ()) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, token_ids: tuple[int, ...], unchecked: int = 0) -> tuple[str, int, str | None]:
        """Take new tokens; the first `unchecked` of them cannot complete a stop string.

        Returns:
            Text to emit, how many of the tokens belong to the answer (all, unless a stop string
            ended within them), and that stop string.
        """
        if not self._stops:
            return self._detokenizer.push(token_ids), len(token_ids), None
        text = ""
        for count, token_id in enumerate(token_ids, start=1):
            new = self._detokenizer.push((token_id,))
            if count <= unchecked:
                text += new
                continue
            if not new:
                continue
            more, stop = self._search(new)
            text += more
            if stop is not None:
                return text, count, stop
        return text, len(token_ids), None

    def flush(self) -> tuple[str, str | None]:
        """The rest, at the answer's end, and the stop string if the rest completes one."""
        text, stop = self._search(self._detokenizer.flush())
        if stop is None:
            text += self._held
        self._held = ""
        return text, stop

    def _search(self, new: str) -> tuple[str, str | None]:
        """Text that is certain now, and the earliest stop string in it."""
        text = self._held + new
        first, found = len(text), None
        for stop in self._stops:
            place = text.find(stop, 0, first + len(stop) - 1)
            if 0 <= place < first:
                first, found = place, stop
        if found is not None:
            self._held = ""
            return text[:first], found
        keep = self._possible_start(text)
        self._held = text[keep:]
        return text[:keep], None

    def _possible_start(self, text: str) -> int:
        """Where the earliest stop string may begin that later text could complete."""
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[place:]
            if any(stop.startswith(tail) for stop in self._stops):
                return place
        return len(text)
