"""Files of outcomes: which backend answered which prompt how well. Read strictly.

A line of JSON: `{"id"?, "prompt": "…" | "messages": […], "scores": {"small": 0.0, "base": 1.0},
"cost_usd"?: {"small": 0.0001}, "split"?: "train" | "test", "suite"?}`. A backend may be missing
from a line's scores: it was not asked. How sure each backend was of its answer stands there as
`"logprob": {"small": -0.1}` and likewise `margin`, `entropy` and `completion_tokens`; what it said,
as `"answer_text": {"small": "62"}`; what other judges said of it, 0 to 1, as
`"judged": {"consistency": {"small": 0.7}, "backend:base": {…}}`. A file called .csv or .tsv is read
as `spreadsheets.py` says; any may be compressed, .gz.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from backends.evaluation.frozen import is_router_test
from backends.wire import Message
from gateway.learning.spreadsheets import is_spreadsheet, outcome_rows

Floats = NDArray[np.float64]
MIN_ROWS = 20
"""Fewer say nothing about anything."""


class OutcomesError(ValueError):
    """A file of outcomes that cannot be used; the message names file, line and what is wrong."""


class _Line(Struct, kw_only=True):
    """One line as it stands in the file; keys that are not named here are ignored."""

    scores: dict[str, float]
    prompt: str | None = None
    messages: list[Message] | None = None
    cost_usd: dict[str, float] = msgspec.field(default_factory=dict)
    split: Literal["train", "test"] | None = None
    suite: str = ""
    id: str | int | None = None
    logprob: dict[str, float] = msgspec.field(default_factory=dict)
    margin: dict[str, float] = msgspec.field(default_factory=dict)
    entropy: dict[str, float] = msgspec.field(default_factory=dict)
    completion_tokens: dict[str, float] = msgspec.field(default_factory=dict)
    answer_text: dict[str, str] = msgspec.field(default_factory=dict)
    judged: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)


class Outcomes(Struct, frozen=True, kw_only=True):
    """N rows over K backends, the cheapest backend first."""

    prompts: list[str]
    """What the classifier reads: the last user turn."""
    backends: list[str]
    scores: Floats
    """[N, K] in 0..1; NaN where a backend was not asked."""
    costs: Floats
    """[N, K] dollars, or calls of the dearest when `costs_assumed`."""
    costs_assumed: bool
    test: NDArray[np.bool_]
    """[N]: frozen for testing."""
    practice: NDArray[np.bool_]
    """[N]: only to be fitted on; no figure counts them."""
    suites: list[str]
    sha256: str
    """Of the files' bytes."""
    signals: dict[str, Floats] = msgspec.field(default_factory=dict)
    """[N, K] by judge (logprob, margin, entropy, consistency, backend:NAME), and `tokens`; NaN
    where the file says nothing. Only those of which it says something."""
    answers: list[dict[str, str]] = msgspec.field(default_factory=list)
    """[N]: what each backend said; empty where the file says nothing."""

    @property
    def weak(self) -> int:
        """The cheapest backend."""
        return 0

    @property
    def strong(self) -> int:
        """The dearest backend."""
        return len(self.backends) - 1

    def only(self, rows: NDArray[np.bool_]) -> "Outcomes":
        """Some of the rows, [N]."""
        return replace(
            self,
            prompts=[prompt for prompt, wanted in zip(self.prompts, rows, strict=True) if wanted],
            scores=self.scores[rows],
            costs=self.costs[rows],
            test=self.test[rows],
            practice=self.practice[rows],
            suites=[suite for suite, wanted in zip(self.suites, rows, strict=True) if wanted],
            signals={name: table[rows] for name, table in self.signals.items()},
            answers=[texts for texts, wanted in zip(self.answers, rows, strict=False) if wanted],
        )


def read_outcomes(path: Path, *practice: Path) -> Outcomes:
    """Read a file of outcomes, and others that heads are only fitted on. Raises OutcomesError."""
    digest = hashlib.sha256()
    lines = _lines(path, digest)
    measured = len(lines)
    for file in practice:
        lines += _lines(file, digest)
    backends = sorted({name for line in lines for name in line.scores})
    if measured < MIN_ROWS or not backends:
        raise OutcomesError(f"{path}: {measured} rows of outcomes; at least {MIN_ROWS}")
    scores = _table([line.scores for line in lines], backends)
    costs, assumed = _costs(_table([line.cost_usd for line in lines], backends), scores)
    order = np.argsort(np.nanmean(costs, axis=0), kind="stable")
    prompts = [_text(line) for line in lines]
    return Outcomes(
        prompts=prompts,
        backends=[backends[index] for index in order],
        scores=scores[:, order],
        costs=costs[:, order],
        costs_assumed=assumed,
        # `models eval`'s test prompts stay test prompts, whatever a line says
        test=np.array(
            [
                line.split == "test" or is_router_test(prompt)
                for line, prompt in zip(lines, prompts, strict=True)
            ]
        ),
        practice=np.arange(len(lines)) >= measured,
        suites=[line.suite for line in lines],
        sha256=digest.hexdigest(),
        signals=_signals(lines, [backends[index] for index in order]),
        answers=[line.answer_text for line in lines],
    )


def _lines(path: Path, digest: "hashlib._Hash") -> list[_Line]:
    """The file's lines; its bytes go into the digest."""
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise OutcomesError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    digest.update(data)
    if is_spreadsheet(path):
        return _spreadsheet(path, text)
    decoder = msgspec.json.Decoder(_Line)
    return [
        _decode(decoder, line, f"{path}:{number}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]


def _spreadsheet(path: Path, data: bytes) -> list[_Line]:
    try:
        rows = list(outcome_rows(data.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise OutcomesError(f"{path}: not UTF-8: {error}; save it as CSV UTF-8") from None
    except ValueError as error:
        raise OutcomesError(f"{path}: {error}") from None
    found = []
    for number, row in rows:
        place = f"{path}: row {number}"
        try:
            line = msgspec.convert(row, _Line)
        except msgspec.ValidationError as error:
            raise OutcomesError(f"{place}: {error}") from None
        found.append(_checked(line, place))
    return found


def _signals(lines: list[_Line], names: list[str]) -> dict[str, Floats]:
    found = {
        name: _table([getattr(line, name) for line in lines], names)
        for name in ("logprob", "margin", "entropy")
    }
    # the token that ends an answer is counted, but not judged
    found["tokens"] = _table([line.completion_tokens for line in lines], names) - 1
    for judge in sorted({judge for line in lines for judge in line.judged}):
        found[judge] = _table([line.judged.get(judge, {}) for line in lines], names)
    return {name: table for name, table in found.items() if not np.isnan(table).all()}


def _decode(decoder: "msgspec.json.Decoder[_Line]", line: bytes, place: str) -> _Line:
    try:
        row = decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OutcomesError(f"{place}: {error}") from None
    return _checked(row, place)


def _checked(row: _Line, place: str) -> _Line:
    if row.prompt is None and not row.messages:
        raise OutcomesError(f"{place}: neither prompt nor messages")
    for name, score in row.scores.items():
        if not 0 <= score <= 1:
            raise OutcomesError(f"{place}: scores.{name}: {score!r} is not in 0..1")
    for name, cost in row.cost_usd.items():
        if not 0 <= cost < float("inf"):
            raise OutcomesError(f"{place}: cost_usd.{name}: {cost!r} is not a price")
    return row


def _text(line: _Line) -> str:
    """As `routing.features` reads a request: the last user turn that says something."""
    if line.prompt is not None:
        return line.prompt
    messages = line.messages or []
    turns = [m.text() for m in messages if m.role == "user" and m.text()]
    return turns[-1] if turns else messages[-1].text()


def _table(rows: list[dict[str, float]], names: list[str]) -> Floats:
    return np.array([[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)


def _costs(costs: Floats, scores: Floats) -> tuple[Floats, bool]:
    """Costs of each row; a backend's mean where a row has none, ranks where the file has none.

    Without any cost the better backend counts as the dearer, and the unit is one call of the best.
    """
    known = ~np.isnan(costs)
    if known.any(axis=0).all():
        means = np.where(known, costs, 0).sum(0) / known.sum(0)
        return np.where(known, costs, means), False
    quality = np.nanmean(scores, axis=0)
    rank = np.empty(len(quality))
    rank[np.argsort(quality, kind="stable")] = np.arange(len(quality)) / max(1, len(quality) - 1)
    return np.tile(rank, (len(scores), 1)), True
