"""Words and names out of the corpus's texts, for tasks over thousands of them.

The generator's own tasks are about 190 words and 43 names. A model that has seen those alone knows
them by heart; over thousands it has to learn how words are spelled.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from backends.bundled.corpus import TEXT_FILES, read_texts

_WORD: Final = re.compile(r"(?<![\w'-])[a-z]{3,9}(?![\w'-])")
_NAME: Final = re.compile(
    r"(?<=[a-z,] )[A-Z][a-z]{2,7}(?= (?:said|asked|went|was|had|is|and|looked|came|who))"
)
_MOST_WORDS, _MOST_NAMES = 9_000, 300
_FEWEST: Final = 8
"""Times that a word must be found."""
_RARE: Final = 3
"""A name is found so often in small letters at most: else it is a word."""


class Vocabulary(NamedTuple):
    """What tasks may be about."""

    words: list[str]
    names: list[str]


def read_vocabulary(corpus: Path) -> Vocabulary:
    """Collect the commonest words and given names of the training texts, commonest first."""
    words: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for file in TEXT_FILES:
        for text in read_texts(corpus, file, held_out=False):
            words.update(_WORD.findall(text))
            names.update(_NAME.findall(text))
    common = [word for word, count in words.most_common(_MOST_WORDS) if count >= _FEWEST]
    people = [name for name, _ in names.most_common() if words[name.lower()] < _RARE]
    return Vocabulary(common, people[:_MOST_NAMES])
