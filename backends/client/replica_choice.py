"""Which replica of a backend gets a request: where its prefix is warm, unless that is too busy.

A replica that has seen the beginning of a prompt need not compute it again. So each request goes
where the work that is waiting plus its own, less what is cached, is least. A beginning that nobody
has seen goes to its place on a hash ring, where other gateways would send it, too; one too short to
be worth keeping goes where fewest tokens are outstanding. No replica gets more than `balance` times
its share of the tokens of the last minute.

Source: Mirrokni, Thorup, Zadimoghaddam 2018, "Consistent Hashing with Bounded Loads"; the ring is
by highest random weight (Thaler and Ravishankar 1998).
"""

import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from backends.client.prefixes import BLOCK_TOKENS

_HALF_LIFE_S = 60.0
_MEMORY_BLOCKS = 131_072
"""Beginnings remembered: 32 MiB of prompts."""
_SLACK_BLOCKS = 64
"""Beyond its share a replica may always get this much: a few requests are no imbalance."""
_QUEUED = 0.02
"""What a token that is outstanding elsewhere costs a request, beside one that it must compute:
batches work on many requests at once."""


class ReplicaChoice:
    """What is known of a backend's replicas, by their number.

    Args:
        names: what other gateways call the replicas, too: their addresses.
        balance: most of the recent tokens that one may have, over its equal share.
        block_tokens: of a prompt, in each of the blocks that `choose` and `begin` get.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        balance: float = 1.25,
        block_tokens: int = BLOCK_TOKENS,
        memory_blocks: int = _MEMORY_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outstanding = [0] * len(names)
        """Tokens under way, by replica."""
        self._names = [name.encode() for name in names]
        self._balance = balance
        self._block_tokens = block_tokens
        self._memory_blocks = memory_blocks
        self._clock = clock
        self._seen: OrderedDict[int, int] = OrderedDict()
        """Digest → bits of the replicas that have seen that beginning, the latest last."""
        self._recent = [0.0] * len(names)
        self._recent_at = clock()

    def choose(self, blocks: Sequence[int], tokens: int, usable: Sequence[int]) -> int:
        """The replica for a request.

        Args:
            blocks: digests of the beginnings of its prompt.
            tokens: of prompt and answer, about.
            usable: replicas to choose from, not empty.
        """
        if len(usable) == 1:
            return usable[0]
        fair = [replica for replica in usable if self._within_share(replica, tokens, usable)]
        among = fair or [min(usable, key=self._recent.__getitem__)]
        warm = self.warm(blocks)
        if len(blocks) > 1 and len({warm[replica] for replica in among}) == 1:
            key = b"%d " % blocks[1]
            at_home = max(usable, key=lambda replica: zlib.crc32(key + self._names[replica]))
            if at_home in among:
                return at_home
        return min(
            among,
            key=lambda r: (_QUEUED * self.outstanding[r] - warm[r], self._recent[r]),
        )

    def warm(self, blocks: Sequence[int]) -> list[int]:
        """Tokens of a prompt's beginning that each replica has seen."""
        found = [0] * len(self._names)
        everyone = (1 << len(found)) - 1
        for place, digest in enumerate(blocks, start=1):
            everyone &= self._seen.get(digest, 0)
            if not everyone:
                break
            for replica in range(len(found)):
                if everyone >> replica & 1:
                    found[replica] = place * self._block_tokens
        return found

    def begin(self, replica: int, blocks: Sequence[int], tokens: int) -> None:
        """A request goes there."""
        self._decay()
        self.outstanding[replica] += tokens
        self._recent[replica] += tokens
        for digest in blocks:
            self._seen[digest] = self._seen.get(digest, 0) | 1 << replica
            self._seen.move_to_end(digest)
        while len(self._seen) > self._memory_blocks:
            self._seen.popitem(last=False)

    def end(self, replica: int, tokens: int) -> None:
        """It is over."""
        self.outstanding[replica] -= tokens

    def forget(self, replica: int) -> None:
        """It was restarted: nothing is warm there."""
        for digest, bits in self._seen.items():
            self._seen[digest] = bits & ~(1 << replica)

    def _within_share(self, replica: int, tokens: int, usable: Sequence[int]) -> bool:
        self._decay()
        total = sum(self._recent[other] for other in usable) + tokens
        most = self._balance * total / len(usable) + _SLACK_BLOCKS * self._block_tokens
        return self._recent[replica] + tokens <= most

    def _decay(self) -> None:
        now = self._clock()
        if now - self._recent_at > 1.0:
            share = 0.5 ** ((now - self._recent_at) / _HALF_LIFE_S)
            self._recent = [tokens * share for tokens in self._recent]
            self._recent_at = now
