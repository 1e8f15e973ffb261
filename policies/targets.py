"""Targets of a policy beside the tiers and backends that exist."""

from collections.abc import Collection, Iterator, Mapping

from policies.cascade import BACKEND
from policies.conditions import ANY
from policies.model import Policy, Route, Rule
from policies.problems import Level, Lines, Problem, did_you_mean


def _alone(action: Route, known: Mapping[str, Collection[str]]) -> bool:
    """Whether one backend stands alone although there are others."""
    if action.deny is not None:
        return False
    named = [action.route] if action.route else [*(action.split or ()), *(action.cascade or ())]
    named += [*action.fallbacks, *(action.objective.among if action.objective else ())]
    if ANY in named:
        return False
    behind = {name for target in named for name in _behind(target, known)}
    return len(behind) == 1 and len({name for names in known.values() for name in names}) > 1


def _behind(target: str, known: Mapping[str, Collection[str]]) -> set[str]:
    """The backends that a target stands for; what does not exist, for itself."""
    if target == ANY:
        return {name for names in known.values() for name in names}
    name = target.removeprefix("backend:")
    return {name} if name != target else set(known.get(name, (name,)))


def check_predicted(
    policy: Policy,
    known: Mapping[str, Collection[str]],
    predicted: Collection[str],
    lines: Lines,
) -> Iterator[Problem]:
    """Warnings of qualities that no head says.

    Args:
        predicted: backends whose quality the head in use predicts.
    """
    fit = "`headgate policy fit` makes a head that does"

    def warning(path: str, message: str) -> Problem:
        return Problem(level="warning", path=path, message=message, line=lines(path))

    for index, rule in enumerate(policy.rules):
        limits = rule.when.quality
        if limits is None or limits.backend not in known:
            continue
        if not _behind(limits.backend, known) & set(predicted):
            message = f"{limits.backend!r}: matches nothing; its quality is not predicted; {fit}"
            yield warning(f"rules[{index}].when.quality.backend", message)
    actions: list[tuple[str, Route]] = [(f"rules[{i}]", r) for i, r in enumerate(policy.rules)]
    for path, action in [*actions, ("default", policy.default)]:
        among = action.objective.among if action.objective is not None else ()
        names = {name for target in among for name in _behind(target, known)} - set(predicted)
        if names:
            shown = ", ".join(map(repr, sorted(names)))
            message = f"no quality of {shown} is predicted, which counts as the worst; {fit}"
            yield warning(f"{path}.objective", message)


def check_targets(
    policy: Policy, known: Mapping[str, Collection[str]], lines: Lines
) -> list[Problem]:
    """Targets that are no tier or backend: errors where they decide, warnings where they help.

    Args:
        known: the backends behind each tier or backend.
    """
    problems: list[Problem] = []
    shown = ", ".join(sorted(known)) or "none"

    def look(path: str, target: str, level: Level) -> None:
        name = target.removeprefix("backend:")
        if name in known or target == ANY:
            return
        hint = did_you_mean(name, known)
        message = f"{target!r}: no such tier or backend; {hint}known: {shown}"
        problems.append(Problem(level=level, path=path, message=message, line=lines(path)))

    actions: list[tuple[str, Route]] = [(f"rules[{i}]", r) for i, r in enumerate(policy.rules)]
    for path, action in [*actions, ("default", policy.default)]:
        safe: Level = "warning" if ANY in action.fallbacks else "error"
        for target in [action.route] if action.route is not None else []:
            look(f"{path}.route", target, safe)
        for target in action.split or {}:
            look(f"{path}.split.{target}", target, safe)
        for target in action.cascade or ():
            look(f"{path}.cascade", target, safe)
        if action.accept is not None and action.accept.judge.startswith(BACKEND):
            look(f"{path}.accept.judge", action.accept.judge, "warning")
        if _alone(action, known):
            text = "no fallbacks: when the one backend behind it is down, requests fail"
            problems.append(Problem(level="warning", path=path, message=text, line=lines(path)))
        for target in action.objective.among if action.objective is not None else ():
            look(f"{path}.objective.among", target, safe)
        for target in action.fallbacks:
            look(f"{path}.fallbacks", target, safe)
        if action.shadow is not None:
            look(f"{path}.shadow", action.shadow, "warning")
        if isinstance(action, Rule):
            for name in ("load", "quality"):
                limits = getattr(action.when, name)
                if limits is not None:
                    look(f"{path}.when.{name}.backend", limits.backend, "warning")
    return problems
