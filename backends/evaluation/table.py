"""The table that `models eval` prints: a line a figure, a column a model."""

from collections.abc import Callable, Iterator, Sequence

from backends.evaluation.figures import Difference, Evaluation, Rate

Line = tuple[str, list[str]]
NONE = "-"


def render(evaluations: Sequence[Evaluation], differences: Sequence[Difference] = ()) -> str:
    """All figures of all models, aligned; percentages carry their 95 % interval."""
    lines: list[Line] = [
        ("", [evaluation.name for evaluation in evaluations]),
        *_lines(evaluations),
    ]
    first = max(len(label) for label, _ in lines)
    widths = [max(len(cells[place]) for _, cells in lines) for place in range(len(evaluations))]
    text = [
        "  ".join(
            (label.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
        ).rstrip()
        for label, cells in lines
    ]
    notes = [
        "",
        *(
            f"{d.name} over {d.over}: {100 * d.difference:+.1f} points "
            f"({100 * d.low:+.1f} to {100 * d.high:+.1f})"
            for d in differences
        ),
        "Shares in %, with 95 % intervals: bootstrap within task functions for the pass rate, "
        "Wilson's elsewhere.",
        *(f"{e.name}: no bits per byte: {e.bits_skipped}" for e in evaluations if e.bits_skipped),
        *(
            f"{e.name}: machine time is the wall time of all answers, shared out by tokens"
            for e in evaluations
            if e.machine_time == "wall"
        ),
    ]
    return "\n".join([*text, *notes])


def _lines(evaluations: Sequence[Evaluation]) -> Iterator[Line]:
    def line(label: str, cell: Callable[[Evaluation], str | None]) -> Line:
        return label, [cell(evaluation) or NONE for evaluation in evaluations]

    def rates(label: str, rate: Callable[[Evaluation], Rate | None]) -> Line:
        return line(label, lambda evaluation: percent(rate(evaluation)))

    yield line("pass rate, mean over task functions", overall)
    for difficulty in _keys(evaluations, lambda e: e.by_difficulty):
        yield rates(f"  difficulty {difficulty}", lambda e, d=difficulty: e.by_difficulty.get(d))  # type: ignore[misc]
    for part in _keys(evaluations, lambda e: e.by_part):
        yield rates(
            f"{part}",
            lambda e, p=part: e.by_part[p].pass_rate if p in e.by_part else None,  # type: ignore[misc]
        )
    yield rates("valid JSON where asked for", lambda e: e.json_valid)
    yield rates("end of turn reached", lambda e: e.end_of_turn)
    yield rates("answers that repeat themselves", lambda e: e.repetition)
    for part in _keys(evaluations, lambda e: e.bits_per_byte or {}):
        yield line(
            f"bits per byte, {part}",
            lambda e, p=part: f"{e.bits_per_byte[p]:.4f}" if e.bits_per_byte else None,  # type: ignore[misc]
        )
    yield line("machine-seconds per answer", _seconds)
    yield line("questions refused", lambda e: str(e.errors) if e.errors else None)
    yield line("answers with a near tie", lambda e: str(e.near_ties))
    for task in _keys(evaluations, lambda e: e.by_task):
        yield rates(f"  {task}", lambda e, t=task: e.by_task.get(t))  # type: ignore[misc]


def overall(evaluation: Evaluation) -> str | None:
    """The overall pass rate with its interval."""
    if evaluation.pass_rate is None or evaluation.pass_rate_interval is None:
        return None
    low, high = evaluation.pass_rate_interval
    return f"{100 * evaluation.pass_rate:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def percent(rate: Rate | None) -> str | None:
    """A share in per cent with its interval."""
    if rate is None or not rate.count:
        return None
    return f"{100 * rate.rate:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"


def _seconds(evaluation: Evaluation) -> str | None:
    seconds = evaluation.machine_seconds_per_answer
    return None if seconds is None else f"{seconds:.4g}"


def _keys(
    evaluations: Sequence[Evaluation], mapping: Callable[[Evaluation], dict[str, object] | object]
) -> list[str]:
    """Keys of all models' mappings, in the order in which they come."""
    found: dict[str, None] = {}
    for evaluation in evaluations:
        keys = mapping(evaluation)
        assert isinstance(keys, dict)
        found |= dict.fromkeys(keys)
    return list(found)
