"""One model through the suites."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct

from backends.evaluation.candidate import Candidate, NoBits
from backends.evaluation.errors import UsageError
from backends.evaluation.figures import (
    AskedRow,
    Difference,
    Evaluation,
    counted,
    difference,
    judge,
    summarise,
)
from backends.evaluation.items import (
    SUITES,
    Item,
    Text,
    read_item_file,
    read_items,
    read_manifest,
    read_texts,
)


class Suites(Struct, frozen=True, kw_only=True):
    """What is asked."""

    items: dict[str, list[Item]]
    texts: list[Text] | None
    """None: `lm` was not asked for."""
    sha256: dict[str, str]
    is_part: bool
    """Not all suites, or not the whole of one."""


class Measured(Struct, frozen=True, kw_only=True):
    """A model's figures and answers."""

    evaluation: Evaluation
    asked: Mapping[str, Sequence[AskedRow]]

    def outputs(self) -> Iterator[dict[str, Any]]:
        """Every answer, as `--outputs` writes it."""
        for suite, rows in self.asked.items():
            for item, answer, passed in rows:
                yield {
                    "model": self.evaluation.name,
                    "suite": suite,
                    "id": item.id,
                    "prompt": item.prompt,
                    "answers": item.answers,
                    "match": item.match,
                    "passed": passed,
                    "output": answer,
                }


def read_suites(names: Sequence[str], *, limit: int | None = None) -> Suites:
    """Read the suites by their names, or a user's own file of questions.

    Raises:
        UsageError: no such suite or file.
        EvaluationError: a packaged suite is damaged.
    """
    wanted: list[str] = []
    for name in names:
        wanted += SUITES if name == "all" else [name]
    items: dict[str, list[Item]] = {}
    texts, sums, manifest = None, {}, read_manifest()
    for name in dict.fromkeys(wanted):
        if name == "lm":
            texts = read_texts()[:limit]
        elif name in SUITES:
            items[name] = read_items(name)[:limit]
        elif name.removesuffix(".gz").endswith(".jsonl"):
            items[Path(name).name.partition(".")[0]] = read_item_file(Path(name))[:limit]
        else:
            allowed = ", ".join(("all", *SUITES))
            raise UsageError(f"no suite {name!r}; allowed: {allowed}, or a .jsonl file")
        if name in manifest:
            sums[name] = manifest[name].sha256
    return Suites(
        items=items, texts=texts, sha256=sums, is_part=limit is not None or set(sums) != set(SUITES)
    )


def measure(candidate: Candidate, suites: Suites, *, quiet: bool = True) -> Measured:
    """Ask one model everything.

    Raises:
        BackendError: it cannot answer at all.
    """
    everything = [item for items in suites.items.values() for item in items]
    progress = _Progress(candidate.name, len(everything), quiet=quiet)
    answers = candidate.answer(everything, progress)
    passed = judge(everything, answers)
    rows = iter(zip(everything, answers, passed, strict=True))
    asked = {name: [next(rows) for _ in items] for name, items in suites.items.items()}
    bits: Mapping[str, float] | str | None = None
    if suites.texts:
        try:
            bits = candidate.text_bits(suites.texts)
        except NoBits as reason:
            bits = str(reason)
    progress.done()
    return Measured(evaluation=summarise(candidate, suites.sha256, asked, bits), asked=asked)


def differences(measured: Sequence[Measured]) -> list[Difference]:
    """Each model's pass rate over that of the one before it."""
    return [
        difference(
            after.evaluation.name,
            counted(after.asked),
            before.evaluation.name,
            counted(before.asked),
        )
        for before, after in pairwise(measured)
        if counted(after.asked)
    ]


class _Progress:
    """A line on a terminal's stderr that counts answers."""

    def __init__(self, name: str, total: int, *, quiet: bool) -> None:
        self._name, self._total, self._count = name, total, 0
        self._shown = not quiet and sys.stderr.isatty()

    def __call__(self, more: int) -> None:
        self._count += more
        if self._shown and self._count % 16 == 0:
            print(f"\r{self._name}: {self._count} of {self._total}", end="", file=sys.stderr)

    def done(self) -> None:
        """End the line."""
        if self._shown:
            print(f"\r{self._name}: {self._total} of {self._total}", file=sys.stderr)
