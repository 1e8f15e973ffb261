"""What types alone cannot say of a policy: contradictions, limits, rules that nothing reaches."""

import math
from collections.abc import Iterator

import msgspec

from policies.cascade import cascade_problems
from policies.conditions import minutes, time_zone
from policies.failing import failing_problems
from policies.model import BackendRange, Hours, Objective, Policy, Range, Route, Sticky, When
from policies.problems import Level, Lines, Problem
from policies.reachability import always, covered, impossible

ACTIONS = ("route", "split", "cascade", "objective", "deny")


def check_values(policy: Policy, lines: Lines) -> Iterator[Problem]:
    """What types alone cannot say."""

    def problem(path: str, message: str, level: Level = "error") -> Problem:
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
            text = (
                f"never reached: rule {unconditional!r} before it has no conditions that can fail"
            )
            yield problem(path, text, "warning")
        elif always(rule.when):
            unconditional = rule.name
        for where, message in (*_action_problems(rule), *_when_problems(rule.when)):
            yield problem(f"{path}.{where}", message)
        for where, message in impossible(rule.when):
            yield problem(f"{path}.when.{where}", message, "warning")
    for index, earlier in covered(policy):
        text = f"never reached: rule {earlier!r} before it matches all that this one does"
        yield problem(f"rules[{index}]", text, "warning")
    if unconditional is not None:
        text = f"never reached: rule {unconditional!r} has no conditions that can fail"
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
