"""The prompts that are kept for measuring. Standard library only.

No model may be trained on any of them. On some of those no router may be fitted either, so that
models and routers together can be judged by what neither has seen.

A prompt is known by the hash of its words, in small letters, so that neither letter case nor
spacing hides it. The hashes stand in suites/frozen.txt, written with the suites themselves.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Final

SUITES_FOLDER: Final = Path(__file__).resolve().parent / "suites"
HASHES: Final = SUITES_FOLDER / "frozen.txt"
ROUTER_TEST_SHARE: Final = 0.4


def prompt_hash(prompt: str) -> str:
    """Sixteen hex digits of sha256 over the prompt's words in small letters."""
    words = " ".join(prompt.lower().split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_for_test(prompt: str) -> bool:
    """On which side of the routers' split a frozen prompt falls, by its hash."""
    return int(prompt_hash(prompt)[:8], 16) < ROUTER_TEST_SHARE * 2**32


def is_frozen(prompt: str) -> bool:
    """Whether no model may be trained on this prompt."""
    return prompt_hash(prompt) in _hashes()


def is_router_test(prompt: str) -> bool:
    """Whether no model and no router may be fitted on this prompt."""
    return is_for_test(prompt) and is_frozen(prompt)


@lru_cache(maxsize=1)
def _hashes() -> frozenset[str]:
    return frozenset(HASHES.read_text(encoding="ascii").split())
