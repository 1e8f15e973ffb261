"""The prompts that nothing may be trained on: no model, no router. Standard library only.

A prompt is known by the hash of its words, in small letters, so that neither letter case nor
spacing hides it. The hashes stand in suites/frozen.txt, written with the suites themselves.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Final

SUITES_FOLDER: Final = Path(__file__).resolve().parent / "suites"
HASHES: Final = SUITES_FOLDER / "frozen.txt"


def prompt_hash(prompt: str) -> str:
    """Sixteen hex digits of sha256 over the prompt's words in small letters."""
    words = " ".join(prompt.lower().split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@lru_cache(maxsize=1)
def frozen_hashes() -> frozenset[str]:
    """The hashes of every prompt of the packaged suites."""
    return frozenset(HASHES.read_text(encoding="ascii").split())


def is_frozen(prompt: str) -> bool:
    """Whether a prompt is kept for measuring alone."""
    return prompt_hash(prompt) in frozen_hashes()
