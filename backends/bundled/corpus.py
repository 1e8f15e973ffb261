"""Reading the corpus folder: running text, chats, and tasks whose answers are known."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from backends.bundled.errors import CorpusError

Row = TypeVar("Row", bound=msgspec.Struct)
Split = Literal["train", "valid", "test"]
TEXT_FILES: Final = ("text_stories", "text_encyclopedia")
HELD_OUT_SHARE: Final = 0.01
"""Share of the running texts kept out of training, by hash."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One question and its answer."""

    prompt: str
    response: str
    category: str = ""
    source: str = ""
    split: Split = "train"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A question with an answer that can be compared exactly."""

    prompt: str
    response: str
    answer: str
    category: str
    difficulty: int
    task: str = ""
    split: Split = "train"


class _Text(msgspec.Struct, frozen=True, kw_only=True):
    text: str


def read_rows(corpus: Path, name: str, row_type: type[Row]) -> Iterator[Row]:
    """Read `name`.jsonl.gz of the corpus, row by row.

    Raises:
        CorpusError: the file is missing, cut short, not gzip, or a row lacks a field.
    """
    path = corpus / f"{name}.jsonl.gz"
    decoder = msgspec.json.Decoder(row_type)
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007
                yield decoder.decode(line)
    except FileNotFoundError:
        raise CorpusError(
            f"no corpus file {str(path)!r}; point --corpus at the folder that holds it"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(
            f"corpus file {str(path)!r} is cut short or damaged after row {number} ({error}); "
            "copy it again"
        ) from error
    except msgspec.MsgspecError as error:
        raise CorpusError(
            f"row {number} of corpus file {str(path)!r} does not fit: {error}; "
            "copy the file again, or make it again with the corpus's own script"
        ) from error


def hash_share(text: str) -> float:
    """Map a text to [0, 1) by its sha256: the same text falls on the same side every time."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def read_texts(corpus: Path, name: str, *, held_out: bool) -> list[str]:
    """Read one file of running text: the part for training, or the part held out by hash."""
    texts = (row.text for row in read_rows(corpus, name, _Text))
    return [text for text in texts if (hash_share(text) < HELD_OUT_SHARE) == held_out]


def read_chat(corpus: Path, split: Split) -> list[Turn]:
    """Read the question and answer pairs of one split."""
    return [row for row in read_rows(corpus, "chat", Turn) if row.split == split]


def read_tasks(corpus: Path, split: Split) -> list[Task]:
    """Read the generated tasks of one split as they ship with the corpus."""
    return list(read_rows(corpus, f"synthetic.{split}", Task))
