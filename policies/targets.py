"""Targets of a policy beside the tiers and backends that exist."""

from collections.abc import Collection

from policies.cascade import BACKEND
from policies.conditions import ANY
from policies.model import Policy, Route, Rule
from policies.problems import Level, Lines, Problem, did_you_mean


def _alone(action: Route, known: Collection[str]) -> bool:
    """Whether one target stands alone although there are others."""
    if action.deny is not None or action.fallbacks or action.objective is not None:
        return False
    targets = {action.route} if action.route else {*(action.split or ()), *(action.cascade or ())}
    return len(targets) == 1 and ANY not in targets and len(known) > 1


def check_targets(policy: Policy, known: Collection[str], lines: Lines) -> list[Problem]:
    """Targets that are no tier or backend: errors where they decide, warnings where they help."""
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
