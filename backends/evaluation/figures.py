"""From answers to figures: pass rates with intervals, and everything else in the table."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from backends.evaluation.candidate import CONCURRENT, Answer, Candidate, MachineTime, ModelFacts
from backends.evaluation.items import SUITES, Item
from backends.evaluation.scoring import parsed_json, passes, repeats

Z_95: Final = 1.959963984540054
RESAMPLES: Final = 2000
NEAR_TIE: Final = 1e-3
"""Nats: closer tokens may change places with another processor's rounding."""
DECIMALS: Final = 4
EXAMPLES: Final = (
    "add",
    "word1",
    "extract1",
    "classify",
    "capitals",
    "animals",
    "letter_at",
    "greetings",
    "identity",
    "open",
    "costs",
    "cost_header",
)
"""Task functions of which one answer is shown."""


AskedRow = tuple[Item, Answer, bool]
"""A question, the answer to it, and whether that was right."""


class Rate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share with its 95 % interval."""

    rate: float
    low: float
    high: float
    passed: int
    count: int


class PartRates(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of a suite."""

    pass_rate: Rate
    by_difficulty: dict[str, Rate]


class Evaluation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model, measured. Intervals are 95 %: Wilson's for shares, bootstrap for `pass_rate`."""

    name: str
    model: ModelFacts
    suites: dict[str, str]
    """Suite → sha256 of its rows."""
    pass_rate: float | None
    """Mean over the task functions of the `tasks` suite (without it, of a user's own questions),
    each weighing alike."""
    pass_rate_interval: tuple[float, float] | None
    by_part: dict[str, PartRates]
    """Parts of all suites asked: synthetic, known and unseen tasks; kinds of chat; docs."""
    by_difficulty: dict[str, Rate]
    """Of the `tasks` suite, all questions alike."""
    by_task: dict[str, Rate]
    """Task function → its questions."""
    json_valid: Rate | None
    """Of the answers that should be JSON, those that parse."""
    end_of_turn: Rate | None
    """Answers that ended by themselves."""
    repetition: Rate | None
    """Answers in which four words in a row come three times or more."""
    bits_per_byte: dict[str, float] | None
    bits_skipped: str | None
    """Why the bits could not be counted."""
    errors: int
    """Questions that the model refused; they count as failed."""
    near_ties: int
    """Answers with a step so close that another processor may round it the other way."""
    prompt_tokens: int
    completion_tokens: int
    machine_seconds_per_answer: float | None
    machine_time: MachineTime
    examples: list[tuple[str, str]]
    """A few questions and the answers to them."""
    concurrent: int = CONCURRENT


class Difference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far one model's pass rate lies above that of the one named before it."""

    name: str
    over: str
    difference: float
    low: float
    high: float


def wilson(passed: int, count: int) -> Rate:
    """A share with Wilson's interval (Wilson 1927), which also holds near 0 and 1."""
    if count == 0:
        return Rate(rate=0.0, low=0.0, high=1.0, passed=0, count=0)
    share, z2 = passed / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Rate(
        rate=round(share, DECIMALS),
        low=round(max(0.0, middle - half), DECIMALS),
        high=round(min(1.0, middle + half), DECIMALS),
        passed=passed,
        count=count,
    )


def macro_average(groups: Sequence[Sequence[bool]]) -> tuple[float, tuple[float, float]]:
    """The mean of the groups' shares, and its interval: 2,000 resamples within every group."""
    rng = np.random.default_rng(0)
    shares = [np.mean(group) for group in groups]
    # a resample of n yes-or-no answers is one binomial draw
    drawn = [
        rng.binomial(len(g), s, RESAMPLES) / len(g) for g, s in zip(groups, shares, strict=True)
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    interval = (round(float(low), DECIMALS), round(float(high), DECIMALS))
    return round(float(np.mean(shares)), DECIMALS), interval


def difference(
    name: str, rows: Sequence[AskedRow], over: str, others: Sequence[AskedRow]
) -> Difference:
    """The difference of two macro averages on the same questions, resampled in pairs."""
    gaps: dict[str, list[int]] = defaultdict(list)
    for (item, _, ok), (_, _, other) in zip(rows, others, strict=True):
        gaps[item.task].append(ok - other)
    rng = np.random.default_rng(0)
    drawn = []
    for group in map(np.array, gaps.values()):
        picked = rng.integers(len(group), size=(RESAMPLES, len(group)))
        drawn.append(group[picked].mean(axis=1))
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    return Difference(
        name=name,
        over=over,
        difference=round(float(np.mean([np.mean(group) for group in gaps.values()])), DECIMALS),
        low=round(float(low), DECIMALS),
        high=round(float(high), DECIMALS),
    )


def rates_by(keys: Iterable[str], passed: Iterable[bool]) -> dict[str, Rate]:
    """Shares by key, in the keys' order of first appearance."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for key, ok in zip(keys, passed, strict=True):
        groups[key].append(ok)
    return {key: wilson(sum(oks), len(oks)) for key, oks in groups.items()}


def judge(items: Sequence[Item], answers: Sequence[Answer]) -> list[bool]:
    """Whether each answer is right; one that never ended is not, where only fluency counts."""
    return [
        answer.error is None
        and passes(item, answer.text)
        and (answer.ended or item.match != "fluent")
        for item, answer in zip(items, answers, strict=True)
    ]


def summarise(
    candidate: Candidate,
    suites: Mapping[str, str],
    asked: Mapping[str, Sequence[AskedRow]],
    bits: Mapping[str, float] | str | None,
) -> Evaluation:
    """All figures of one model.

    Args:
        suites: name → sha256 of every suite that was run.
        asked: by suite, each question with its answer and whether that was right.
        bits: by part of text; a reason why there are none; None: not asked for.
    """
    everything = [row for rows in asked.values() for row in rows]
    tasks = counted(asked)
    by_task: dict[str, list[bool]] = defaultdict(list)
    for item, _, ok in tasks:
        by_task[item.task].append(ok)
    macro, interval = macro_average(list(by_task.values())) if by_task else (None, None)
    answered = [(item, answer) for item, answer, _ in everything if answer.error is None]
    spent = [answer.machine_ns for _, answer in answered if answer.machine_ns is not None]
    parts = dict.fromkeys(item.part for item, _, _ in everything)
    return Evaluation(
        name=candidate.name,
        model=candidate.facts,
        suites=dict(suites),
        pass_rate=macro,
        pass_rate_interval=interval,
        by_part={part: _part([row for row in everything if row[0].part == part]) for part in parts},
        by_difficulty=_by_difficulty(tasks),
        by_task={task: wilson(sum(oks), len(oks)) for task, oks in by_task.items()},
        json_valid=_share(
            parsed_json(answer.text) is not None
            for item, answer in answered
            if item.match == "json"
        ),
        end_of_turn=_share(answer.ended for _, answer in answered),
        repetition=_share(
            repeats(answer.text) for item, answer in answered if not any(map(repeats, item.answers))
        ),
        bits_per_byte=(
            {part: round(value, DECIMALS) for part, value in bits.items()}
            if isinstance(bits, Mapping)
            else None
        ),
        bits_skipped=bits if isinstance(bits, str) else None,
        errors=len(everything) - len(answered),
        near_ties=sum(a.margin is not None and a.margin < NEAR_TIE for _, a in answered),
        prompt_tokens=sum(answer.prompt_tokens for _, answer in answered),
        completion_tokens=sum(answer.completion_tokens for _, answer in answered),
        machine_seconds_per_answer=float(f"{sum(spent) / len(spent) / 1e9:.4g}") if spent else None,
        machine_time=candidate.machine_time,
        examples=_examples(everything),
    )


def counted(asked: Mapping[str, Sequence[AskedRow]]) -> Sequence[AskedRow]:
    """The questions of the pass rate: `tasks`, or without it a user's own."""
    own = [row for suite, rows in asked.items() if suite not in SUITES for row in rows]
    return asked.get("tasks") or own


def stable(evaluation: Evaluation) -> Evaluation:
    """What must be the same on every run: all but the time it took."""
    return msgspec.structs.replace(evaluation, machine_seconds_per_answer=None)


def _examples(rows: Sequence[AskedRow]) -> list[tuple[str, str]]:
    """The first question of each of a few task functions, right or wrong."""
    first = {item.task: (item.prompt, answer.text) for item, answer, _ in reversed(rows)}
    return [first[task] for task in EXAMPLES if task in first]


def _part(rows: Sequence[AskedRow]) -> PartRates:
    passed = [ok for _, _, ok in rows]
    return PartRates(pass_rate=wilson(sum(passed), len(passed)), by_difficulty=_by_difficulty(rows))


def _by_difficulty(rows: Sequence[AskedRow]) -> dict[str, Rate]:
    rated = sorted((item.difficulty, ok) for item, _, ok in rows if item.difficulty is not None)
    return rates_by((str(difficulty) for difficulty, _ in rated), (ok for _, ok in rated))


def _share(values: Iterable[bool]) -> Rate | None:
    found = list(values)
    return wilson(sum(found), len(found)) if found else None
