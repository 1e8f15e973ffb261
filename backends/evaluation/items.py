"""The suites: questions with what counts as an answer, and texts; read from package data."""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from backends.evaluation.errors import EvaluationError, UsageError
from backends.evaluation.frozen import SUITES_FOLDER

SuiteName = Literal["lm", "tasks", "chat", "docs"]
SUITES: Final[tuple[SuiteName, ...]] = ("lm", "tasks", "chat", "docs")
Match = Literal["exact", "number", "word", "phrase", "mentions", "json", "fluent"]
Row = TypeVar("Row", bound=Struct)


class Item(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One question. `backends.evaluation.scoring` says what each kind of match means."""

    id: str
    prompt: str
    answers: tuple[str, ...] = ()
    """Any of them is right; of `fluent`, which needs none: words, one of which must be said."""
    match: Match = "exact"
    part: str
    """Of the suite: reported apart."""
    task: str
    """The task function: the unit of the macro average."""
    difficulty: int | None = None
    """1 to 5, set by rule; None: not rated."""
    max_tokens: int = 96
    split: Literal["train", "test"] = "test"
    """train: a router may be fitted on the outcome, though no model on the prompt."""


class Text(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of running text whose bits are counted."""

    part: str
    source: str
    text: str


class _Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sha256: str
    rows: int


Manifest = dict[str, _Entry]


def write_suite(folder: Path, name: str, rows: Sequence[Struct]) -> _Entry:
    """Write `name`.jsonl.gz; the same rows give the same bytes."""
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    data = gzip.compress(lines, 9, mtime=0)
    (folder / f"{name}.jsonl.gz").write_bytes(data)
    # of the rows, not of the file: another zlib compresses to other bytes
    return _Entry(sha256=hashlib.sha256(lines).hexdigest(), rows=len(rows))


def read_manifest(folder: Path = SUITES_FOLDER) -> Manifest:
    """What the suites should hold."""
    try:
        return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise EvaluationError(
            f"suites' manifest in {str(folder)!r} cannot be read ({error}); reinstall headgate"
        ) from error


def read_items(name: SuiteName, folder: Path = SUITES_FOLDER) -> list[Item]:
    """The questions of a packaged suite.

    Raises:
        EvaluationError: its file is missing, cut or changed.
    """
    return _read(name, Item, folder)


def read_texts(folder: Path = SUITES_FOLDER) -> list[Text]:
    """The texts of the `lm` suite. Raises as `read_items`."""
    return _read("lm", Text, folder)


def _read(name: str, kind: type[Row], folder: Path) -> list[Row]:
    path = folder / f"{name}.jsonl.gz"
    try:
        lines = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise EvaluationError(
            f"suite file {str(path)!r} is missing, cut or damaged ({error}); reinstall headgate"
        ) from error
    expected = read_manifest(folder).get(name)
    if expected is None or hashlib.sha256(lines).hexdigest() != expected.sha256:
        raise EvaluationError(
            f"suite file {str(path)!r} is not the one that was packaged; reinstall headgate, or "
            "build the suites again"
        )
    return msgspec.json.Decoder(kind).decode_lines(lines)


def read_item_file(path: Path) -> list[Item]:
    """Questions out of a user's own file: JSON Lines with `prompt` and `answers` (or `answer`).

    Raises:
        UsageError: no such file, or a line does not fit; names the line.
    """
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"questions {str(path)!r} cannot be read: {error}") from error
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            items.append(_own_item(path, number, line))
    if not items:
        raise UsageError(f"questions {str(path)!r}: there are none in it")
    return items


def _own_item(path: Path, number: int, line: bytes) -> Item:
    """A line of a user's file, what it leaves out filled in."""
    try:
        row = msgspec.json.decode(line, type=dict[str, object])
        if "answer" in row:
            row["answers"] = [row.pop("answer")]
        named = {"id": f"{path.stem}-{number}", "part": path.stem, "task": path.stem, **row}
        item = msgspec.convert(named, Item)
    except msgspec.MsgspecError as error:
        raise UsageError(f"line {number} of {str(path)!r} is no question: {error}") from error
    if not item.answers and item.match != "fluent":
        raise UsageError(
            f"line {number} of {str(path)!r} has no answer; give `answer`, `answers`, or "
            '`"match": "fluent"`'
        )
    return item
