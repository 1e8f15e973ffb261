"""What a server had in its prefix cache of a prompt, where its answers do not say.

vLLM and SGLang tell `cached_tokens` with an answer only if they are started so, but both sum them
up at /metrics. Which beginnings of prompts were sent there is known; how much of what could have
been cached was, the sum says: a server without a cache, or with a small one, has hardly any. So a
request's cached tokens are what of its prompt was seen before, times that share.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct, field

_MOST_BLOCKS: Final = 32_768
"""Of beginnings, about 2 million tokens; the longest unseen go first."""
_BELIEF: Final = 1_000.0
"""Tokens, before any sum."""
_FORGET: Final = 0.9
"""Of sums, with each look at the metrics."""


class PrefixCache(Struct, eq=False):
    """One server's."""

    reports: bool = False
    """Its answers do say."""
    _seen: dict[int, None] = field(default_factory=dict)
    _told: float = 0.0
    """Tokens that it said were cached, lately."""
    _possible: float = 0.0
    """Tokens that may have been, lately."""
    _new: float = 0.0
    """Of these, since the last look."""

    def sent(self, blocks: Sequence[int]) -> float:
        """Note the beginnings of a prompt; the share of it that was seen before."""
        known = 0
        for block in blocks:
            known += self._seen.pop(block, 0) is None
            self._seen[block] = None
        for _ in range(len(self._seen) - _MOST_BLOCKS):
            del self._seen[next(iter(self._seen))]
        return known / len(blocks) if blocks else 0.0

    def cached(self, prompt_tokens: int, said: int, share: float) -> int:
        """How many of a prompt's tokens were cached.

        Args:
            said: what the answer says; 0 may mean nothing.
            share: of the prompt, what `sent` said.
        """
        self.reports = self.reports or said > 0
        if self.reports:
            return said
        possible = prompt_tokens * share
        self._new += possible
        return round(possible * min(self._told / self._possible, 1.0)) if self._possible else 0

    def expected(self) -> None:
        """It sums them up, so it probably has a cache: until there is a sum, what may be, was."""
        self._told = self._possible = _BELIEF

    def heard(self, tokens: float) -> None:
        """So many more tokens were cached since the last look, of all prompts."""
        self._told = self._told * _FORGET + tokens
        self._possible = self._possible * _FORGET + self._new
        self._new = 0.0
