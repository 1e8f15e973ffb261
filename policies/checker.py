"""Reading a policy file strictly: every problem named, with its line, key path and what is allowed.

`parse()` gives the policy or raises `PolicyError` with all errors found; `check()` lists errors and
warnings, and with the names that exist it also finds targets that do not.
"""

import math
import re
import tomllib
from collections.abc import Collection, Iterator
from copy import deepcopy
from difflib import get_close_matches
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from policies.cascade import BACKEND, cascade_problems
from policies.conditions import ANY, minutes, time_zone
from policies.described import described
from policies.failing import failing_problems
from policies.model import (
    Accept,
    BackendRange,
    Hedge,
    Hours,
    Objective,
    Policy,
    Range,
    Route,
    Rule,
    Sticky,
    When,
)
from policies.reachability import covered, impossible

_MOST_PROBLEMS = 100
_REQUIRED = {"default": {"route": "*"}, **dict.fromkeys(("name", "backend", "from", "to"), "")}
"""Keys that must be there, and what may stand for them while others are looked at."""
ACTIONS = ("route", "split", "cascade", "objective", "deny")


class Problem(Struct, frozen=True, kw_only=True):
    """One thing wrong with a policy file."""

    level: Literal["error", "warning"]
    path: str
    """Key path, e.g. rules[0].when.task; empty for the whole file."""
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path + ': ' if self.path else ''}{self.message}"


class PolicyError(ValueError):
    """A policy file that cannot be used; `problems` holds every error found."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


def parse(text: str, source: str = "policy") -> Policy:
    """Decode a policy file.

    Raises:
        PolicyError: with every error; its text names `source`, line, key path and value.
    """
    policy, problems = _read(text)
    errors = [problem for problem in problems if problem.level == "error"]
    if policy is None or errors:
        raise PolicyError(source, errors)
    return policy


def check(text: str, targets: Collection[str] | None = None) -> list[Problem]:
    """Errors and warnings of a policy file, in the order of its lines.

    Args:
        targets: tiers and backends that exist; None: names of targets are not checked.
    """
    policy, problems = _read(text)
    if policy is not None and targets is not None:
        problems += _check_targets(policy, targets, _Lines(text))
    return sorted(problems, key=lambda p: (p.line or 0, p.path))


def schema() -> dict[str, Any]:
    """The JSON Schema of a policy file."""
    kinds: list[type[Struct]] = [Policy, Rule, Route, When, Sticky]
    kinds += [*_NESTED.values(), *_PARTS.values()]
    return described(msgspec.json.schema(Policy), *kinds)


def _read(text: str) -> tuple[Policy | None, list[Problem]]:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found.group(1)) if found else None
        problem = Problem(level="error", path="", message=f"not valid TOML: {error}", line=line)
        return None, [problem]
    lines = _Lines(text)
    problems = list(_check_keys(tree, lines))
    unknown = {problem.path for problem in problems}
    policy, wrong = _convert(tree, lines)
    problems += [problem for problem in wrong if problem.path not in unknown]
    if policy is None or problems:
        return None, problems
    return policy, list(_check_values(policy, lines))


def _convert(tree: dict[str, Any], lines: "_Lines") -> tuple[Policy | None, list[Problem]]:
    """The policy, or every value of a wrong type: each is taken out in turn to find the next."""
    problems: list[Problem] = []
    rest = {"default": _REQUIRED["default"], **deepcopy(tree)}  # that it is missing was said before
    while True:
        try:
            policy = msgspec.convert(rest, Policy)
        except msgspec.ValidationError as error:
            text = str(error)
            unknown = re.search(r"unknown field `([^`]+)`", text)
            problem = _decode_problem(text, rest, lines)
            gone = f"{problem.path}.{unknown.group(1)}".lstrip(".") if unknown else problem.path
            if unknown is None:
                problems.append(problem)
            if len(problems) > _MOST_PROBLEMS or not _take_out(rest, gone):
                return None, problems
        else:
            return (None if problems else policy), problems


def _take_out(tree: dict[str, Any], path: str) -> bool:
    """Remove what stands at a key path, of a list the whole; False: it cannot be found."""
    found = re.match(r"rules\[(\d+)\]$", path)
    if found is not None:
        tree["rules"][int(found.group(1))] = {"name": path}
        return True
    *parents, key = re.sub(r"(\[[^\]]*\])+$", "", path).split(".")
    table: Any = tree
    for part in parents:
        name, _, index = part.rstrip("]").partition("[")
        table = table.get(name) if isinstance(table, dict) else None
        table = table[int(index)] if index and isinstance(table, list) else table
    if not isinstance(table, dict) or key not in table:
        return False
    del table[key]
    if key in _REQUIRED:
        table[key] = _REQUIRED[key]
    return True


class _Lines:
    """Finds the line of a key path by looking at headers and `key =`; None when unsure."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._blocks: dict[str, int] = {"": 0}
        rules = 0
        for number, line in enumerate(self._lines, start=1):
            header = re.match(r"\s*\[\[?\s*([\w.\-]+)\s*\]\]?\s*(#.*)?$", line)
            if header is None:
                continue
            name = header.group(1)
            if name == "rules":
                name, rules = f"rules[{rules}]", rules + 1
            elif name.startswith("rules."):
                name = f"rules[{rules - 1}]{name[5:]}"
            self._blocks.setdefault(name, number)

    def __call__(self, path: str) -> int | None:
        parts = path.split(".")
        for cut in range(len(parts), -1, -1):
            block = ".".join(parts[:cut])
            if block in self._blocks:
                return self._inside(self._blocks[block], parts[cut:])
        return None

    def _inside(self, start: int, keys: list[str]) -> int | None:
        if not keys or not keys[0]:
            return start or None
        key = re.escape(re.sub(r"(\[[^\]]*\])+$", "", keys[0]))
        for number in range(start, len(self._lines)):
            line = self._lines[number]
            if re.match(r"\s*\[", line) and number > start:
                break
            if re.match(rf"\s*[\"']?{key}[\"']?\s*[=.]", line):
                return number + 1
        return start or None


def _keys(kind: type[Struct]) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(kind)}


def _check_keys(tree: dict[str, Any], lines: _Lines) -> Iterator[Problem]:
    """Unknown keys, everywhere, before types are looked at."""
    yield from _unknown(tree, Policy, "", lines)
    if isinstance(tree.get("sticky"), dict):
        yield from _unknown(tree["sticky"], Sticky, "sticky", lines)
    rules = tree.get("rules")
    tables: list[tuple[str, Any, type[Struct]]] = []
    if isinstance(rules, list):
        tables += [(f"rules[{index}]", rule, Rule) for index, rule in enumerate(rules)]
    tables.append(("default", tree.get("default"), Route))
    for path, table, kind in tables:
        if not isinstance(table, dict):
            continue
        yield from _unknown(table, kind, path, lines)
        for name, inner in _PARTS.items():
            if isinstance(table.get(name), dict):
                yield from _unknown(table[name], inner, f"{path}.{name}", lines)
        when = table.get("when") if kind is Rule else None
        if isinstance(when, dict):
            yield from _unknown(when, When, f"{path}.when", lines)
            for name, inner in _NESTED.items():
                if isinstance(when.get(name), dict):
                    yield from _unknown(when[name], inner, f"{path}.when.{name}", lines)
    if "default" not in tree:
        yield Problem(level="error", path="default", message="missing; a default is required")


_PARTS: dict[str, type[Struct]] = {"objective": Objective, "accept": Accept, "hedge": Hedge}
_NESTED: dict[str, type[Struct]] = {
    "difficulty": Range,
    "prompt_tokens": Range,
    "turns": Range,
    "budget_left": Range,
    "load": BackendRange,
    "quality": BackendRange,
    "hours": Hours,
}


def _unknown(
    table: dict[str, Any], kind: type[Struct], path: str, lines: _Lines
) -> Iterator[Problem]:
    allowed = list(_keys(kind))
    for key in table:
        if key in allowed:
            continue
        place = f"{path}.{key}" if path else key
        word = "condition" if kind is When else "key"
        near = get_close_matches(key, allowed, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"unknown {word}; {hint}allowed: {', '.join(allowed)}"
        yield Problem(level="error", path=place, message=message, line=lines(place))


def _decode_problem(text: str, tree: dict[str, Any], lines: _Lines) -> Problem:
    found = re.search(r" - at `\$\.?([^`]*)`$", text)
    path = found.group(1) if found else ""
    reason = text[: found.start()] if found else text
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return Problem(level="error", path=path, message=reason, line=lines(path))
    if "Invalid enum value" in reason:
        allowed = _allowed_words(path)
        reason = f"{reason}; allowed: {allowed}" if allowed else reason
    message = f"{value!r}: {reason}" if path else reason
    return Problem(level="error", path=path, message=message, line=lines(path))


def _allowed_words(path: str) -> str:
    """The words of a Literal at a key path: task, wants, days, cache."""
    name = re.sub(r"(\[(\d+|\.\.\.)\])+$", "", path).rsplit(".", 1)[-1]
    for kind in (When, Route, Hours, Objective):
        for field in msgspec.structs.fields(kind):
            if field.name == name:
                return ", ".join(_literals(field.type))
    return ""


def _literals(kind: Any) -> list[str]:
    words: list[str] = []
    for part in get_args(kind):
        words += [part] if isinstance(part, str) else _literals(part)
    return words


def _check_values(policy: Policy, lines: _Lines) -> Iterator[Problem]:
    """What types alone cannot say."""

    def problem(path: str, message: str, level: Literal["error", "warning"] = "error") -> Problem:
        return Problem(level=level, path=path, message=message, line=lines(path))

    names: set[str] = set()
    unconditional: str | None = None
    for index, rule in enumerate(policy.rules):
        path = f"rules[{index}]"
        if not rule.name.strip():
            yield problem(f"{path}.name", f"{rule.name!r}: a rule needs a name")
        if rule.name == "default":
            yield problem(f"{path}.name", "'default' is the name of [default]; choose another")
        if rule.name in names:
            yield problem(f"{path}.name", f"{rule.name!r}: another rule has this name")
        names.add(rule.name)
        if unconditional is not None:
            text = f"never reached: rule {unconditional!r} before it has no conditions"
            yield problem(path, text, "warning")
        elif rule.when == When():
            unconditional = rule.name
        for where, message in (*_action_problems(rule), *_when_problems(rule.when)):
            yield problem(f"{path}.{where}", message)
        for where, message in impossible(rule.when):
            yield problem(f"{path}.when.{where}", message, "warning")
    for index, earlier in covered(policy):
        text = f"never reached: rule {earlier!r} before it matches all that this one does"
        yield problem(f"rules[{index}]", text, "warning")
    if unconditional is not None:
        text = f"never reached: rule {unconditional!r} has no conditions"
        yield problem("default", text, "warning")
    for where, message in _sticky_problems(policy.sticky or Sticky()):
        yield problem(f"sticky.{where}", message)
    for where, message in _action_problems(policy.default):
        yield problem(f"default.{where}", message)


def _action_problems(action: Route) -> Iterator[tuple[str, str]]:
    given = [name for name in ACTIONS if getattr(action, name) is not None]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has none"
        yield (given[-1] if given else "route"), f"exactly one of {', '.join(ACTIONS)}; {found}"
    if action.split is not None:
        if not action.split:
            yield "split", "{}: name at least one tier or backend with its weight"
        for target, weight in action.split.items():
            if not (weight > 0 and math.isfinite(weight)):
                yield f"split.{target}", f"{weight!r}: a weight is more than 0"
    if action.objective is not None:
        yield from _objective_problems(action.objective)
    yield from cascade_problems(action)
    if action.deny is not None:
        if not action.deny.strip():
            yield "deny", f"{action.deny!r}: say why; the client reads it"
        for beside in ("fallbacks", "max_tokens", "cache", "shadow"):
            if getattr(action, beside):
                yield beside, "without effect beside deny; remove it"
    if action.max_tokens is not None and action.max_tokens < 1:
        yield "max_tokens", f"{action.max_tokens!r}: at least 1"
    yield from failing_problems(action)


def _sticky_problems(sticky: Sticky) -> Iterator[tuple[str, str]]:
    if not 0 <= sticky.min_gain <= 1:
        yield "min_gain", f"{sticky.min_gain!r}: a difference of probabilities is 0 to 1"
    if not (sticky.headroom >= 1 and math.isfinite(sticky.headroom)):
        yield "headroom", f"{sticky.headroom!r}: at least 1"


def _objective_problems(goal: Objective) -> Iterator[tuple[str, str]]:
    if (goal.minimise is None) == (goal.maximise is None):
        both = "both" if goal.minimise else "neither"
        yield "objective", f'exactly one of minimise = "cost", maximise = "quality"; has {both}'
        return
    if goal.minimise and goal.min_quality is None:
        yield "objective.min_quality", "missing; the least quality that the cheapest must have"
    if goal.maximise and goal.min_quality is not None:
        yield "objective.min_quality", "without effect beside maximise; remove it"
    if goal.min_quality is not None and not 0 <= goal.min_quality <= 1:
        yield "objective.min_quality", f"{goal.min_quality!r}: a probability is 0 to 1"
    for name in ("max_cost_usd", "lambda_cost_usd", "mu_latency_s"):
        value = getattr(goal, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            yield f"objective.{name}", f"{value!r}: 0 or more"
        elif value and goal.minimise:
            yield f"objective.{name}", "without effect beside minimise; remove it"
    if goal.per == "day" and goal.max_cost_usd is None:
        yield "objective.max_cost_usd", 'missing; per = "day" says what it is for'
    if not goal.among:
        yield "objective.among", "[]: name at least one tier or backend, or leave among out"


def _when_problems(when: When) -> Iterator[tuple[str, str]]:
    for field in msgspec.structs.fields(When):
        value = getattr(when, field.name)
        path = f"when.{field.name}"
        if isinstance(value, Range | BackendRange):
            yield from ((path, text) for text in _range_problems(value))
        elif isinstance(value, list) and not value:
            yield path, "[]: an empty list matches nothing; name at least one, or remove it"
        elif field.name == "tags" and value is not None:
            yield from (
                (f"{path}.{tag}", "[]: name at least one value")
                for tag, values in value.items()
                if not values
            )
    if when.hours is not None:
        yield from _hours_problems(when.hours)


def _range_problems(limits: Range | BackendRange) -> Iterator[str]:
    low, high = limits.min, limits.max
    if low is None and high is None:
        yield "give min, max or both"
    if any(limit is not None and math.isnan(limit) for limit in (low, high)):
        yield "nan is no limit"
    if low is not None and high is not None and low >= high:
        yield f"min {low:g}, max {high:g}: matches nothing; min must be less than max"


def _hours_problems(hours: Hours) -> Iterator[tuple[str, str]]:
    start, end = minutes(hours.from_), minutes(hours.to)
    for name, text, value in (("from", hours.from_, start), ("to", hours.to, end)):
        if value is None:
            yield f"when.hours.{name}", f"{text!r}: a time of day is HH:MM, 00:00 to 24:00"
    if start is not None and start == end:
        yield "when.hours.to", f"{hours.to!r}: same as from; leave hours out for the whole day"
    if time_zone(hours.tz) is None:
        yield (
            "when.hours.tz",
            f"{hours.tz!r}: no such time zone; an IANA name such as Europe/Berlin",
        )
    if hours.days is not None and not hours.days:
        yield "when.hours.days", "[]: name at least one day, or leave days out"


def _alone(action: Route, known: Collection[str]) -> bool:
    """Whether one target stands alone although there are others."""
    if action.deny is not None or action.fallbacks or action.objective is not None:
        return False
    targets = {action.route} if action.route else {*(action.split or ()), *(action.cascade or ())}
    return len(targets) == 1 and ANY not in targets and len(known) > 1


def _check_targets(policy: Policy, known: Collection[str], lines: _Lines) -> list[Problem]:
    """Targets that are no tier or backend: errors where they decide, warnings where they help."""
    problems: list[Problem] = []
    shown = ", ".join(sorted(known)) or "none"

    def look(path: str, target: str, level: Literal["error", "warning"]) -> None:
        name = target.removeprefix("backend:")
        if name in known or target == ANY:
            return
        near = get_close_matches(name, list(known), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"{target!r}: no such tier or backend; {hint}known: {shown}"
        problems.append(Problem(level=level, path=path, message=message, line=lines(path)))

    actions: list[tuple[str, Route]] = [(f"rules[{i}]", r) for i, r in enumerate(policy.rules)]
    for path, action in [*actions, ("default", policy.default)]:
        safe: Literal["error", "warning"] = "warning" if ANY in action.fallbacks else "error"
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
