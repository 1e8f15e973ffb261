"""Prompt lookup: what followed the last few tokens when they occurred before.

Source: Saxena 2023, "Prompt Lookup Decoding".
"""

from collections.abc import Sequence

from backends.engine.request import Request


class NgramProposer:
    """Looks up the newest earlier place of the last n tokens, the longest n first.

    Each sequence has an index from n-gram to its newest end; a step only adds its new tokens.
    """

    name = "ngram"
    reach = 1
    foresees = False
    costly = False

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"n-grams of {shortest} to {longest} tokens; need 1 ≤ shortest ≤ longest"
            )
        self._sizes = tuple(range(longest, shortest - 1, -1))
        self._indexes: dict[Request, _Index] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """What followed the same tokens before; [] where they are new."""
        drafts = []
        for request, limit in zip(requests, limits, strict=True):
            index = self._indexes.get(request)
            if index is None:
                index = self._indexes[request] = _Index(self._sizes)
            drafts.append(index.continuation(request.token_ids, limit))
        return drafts

    def forget(self, request: Request) -> None:
        """Drop the sequence's index."""
        self._indexes.pop(request, None)


class _Index:
    """N-grams of one sequence."""

    __slots__ = ("_ends", "_indexed", "_matches", "_sizes")

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self._ends: list[dict[tuple[int, ...], int]] = [{} for _ in sizes]
        self._indexed = 0
        self._matches: list[int] = [0] * len(sizes)

    def continuation(self, tokens: list[int], limit: int) -> list[int]:
        """Tokens after the newest earlier occurrence of the longest known ending."""
        self._extend(tokens)
        for place in self._matches:
            if place:
                guess = tokens[place : place + limit]
                # An occurrence that overlaps the end repeats with the distance between the two.
                period = len(tokens) - place
                while len(guess) < limit:
                    guess += guess[-period:][: limit - len(guess)]
                return guess
        return []

    def _extend(self, tokens: list[int]) -> None:
        """Index the new tokens; remember where the ending occurred before (0: nowhere)."""
        count = len(tokens)
        if self._indexed == count:
            return
        for row, size in enumerate(self._sizes):
            ends = self._ends[row]
            match = 0
            for end in range(max(size, self._indexed + 1), count + 1):
                key = tuple(tokens[end - size : end])
                match = ends.get(key, 0)
                ends[key] = end
            self._matches[row] = match
        self._indexed = count
