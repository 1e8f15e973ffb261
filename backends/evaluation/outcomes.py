"""Who answers which prompt well, how surely and at what effort: rows for fitting routers."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from backends.bundled import bundled_path
from backends.evaluation.figures import NEAR_TIE, AskedRow

OUTCOMES: Final = bundled_path("nano").parent / "outcomes.jsonl.gz"
"""The bundled family's, for every frozen question."""


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One prompt, and every model's answer to it, by model name."""

    id: str
    prompt: str
    scores: dict[str, float]
    """0 or 1."""
    split: str
    suite: str
    part: str
    task: str
    difficulty: int | None = None
    logprob: dict[str, float] = {}
    """Mean over the tokens of the answer's text; this and the next two: what judges go by."""
    margin: dict[str, float] = {}
    entropy: dict[str, float] = {}
    answer_text: dict[str, str] = {}
    """What each said, for judges that read it."""
    prompt_tokens: dict[str, int] = {}
    completion_tokens: dict[str, int] = {}
    machine_ns: dict[str, int] = {}
    """To ten microseconds: more digits are noise that does not pack."""
    cost_usd: dict[str, float] = {}
    """Filled in by `headgate models eval`, which knows the prices."""
    near_tie: list[str] = []
    """Models whose answer another processor's rounding may change."""


def outcomes(suite: str, asked: dict[str, Sequence[AskedRow]]) -> list[Outcome]:
    """Put the models' answers to the same questions side by side.

    Args:
        asked: model → its answers, all to the same items in the same order.
    """
    names = list(asked)
    return [_outcome(suite, names, rows) for rows in zip(*asked.values(), strict=True)]


def _outcome(suite: str, names: list[str], rows: Sequence[AskedRow]) -> Outcome:
    item = rows[0][0]
    answers = {name: answer for name, (_, answer, _) in zip(names, rows, strict=True)}
    sure = {n: a.certainty for n, a in answers.items() if a.certainty is not None}
    return Outcome(
        id=item.id,
        prompt=item.prompt,
        scores={name: float(ok) for name, (_, _, ok) in zip(names, rows, strict=True)},
        split=item.split,
        suite=suite,
        part=item.part,
        task=item.task,
        difficulty=item.difficulty,
        logprob={n: round(certainty.logprob, 4) for n, certainty in sure.items()},
        margin={n: round(certainty.margin, 4) for n, certainty in sure.items()},
        entropy={n: round(certainty.entropy, 4) for n, certainty in sure.items()},
        answer_text={n: a.text for n, a in answers.items() if a.text},
        prompt_tokens={n: a.prompt_tokens for n, a in answers.items()},
        completion_tokens={n: a.completion_tokens for n, a in answers.items()},
        machine_ns={
            n: round(a.machine_ns, -4) for n, a in answers.items() if a.machine_ns is not None
        },
        near_tie=[n for n, a in answers.items() if a.margin is not None and a.margin < NEAR_TIE],
    )


def write_lines(path: Path, rows: Sequence[object]) -> None:
    """Write JSON Lines at one stroke, the whole file or none of it; gzip if it ends in .gz."""
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
    fresh.replace(path)


def read_lines(path: Path) -> bytes:
    """What `write_lines` wrote, unpacked. Raises OSError, EOFError or zlib.error."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def read_outcomes(path: Path = OUTCOMES) -> list[Outcome]:
    """Read what `write_lines` wrote of outcomes."""
    return msgspec.json.Decoder(Outcome).decode_lines(read_lines(path))
