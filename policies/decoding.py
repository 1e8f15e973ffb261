"""From a TOML tree to a policy: every unknown key and every value of a wrong type, at once."""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, get_args

import msgspec
from msgspec import Struct

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
from policies.problems import Lines, Problem, did_you_mean

_MOST_PROBLEMS = 100
_REQUIRED = {"default": {"route": "*"}, **dict.fromkeys(("name", "backend", "from", "to"), "")}
"""Keys that must be there, and what may stand for them while others are looked at."""
_TABLES: dict[str, Any] = {"tags": list[str], "split": float}
"""Tables with keys of the author's own, and what stands under each."""

PARTS: dict[str, type[Struct]] = {"objective": Objective, "accept": Accept, "hedge": Hedge}
NESTED: dict[str, type[Struct]] = {
    "difficulty": Range,
    "prompt_tokens": Range,
    "turns": Range,
    "budget_left": Range,
    "load": BackendRange,
    "quality": BackendRange,
    "hours": Hours,
}


def convert(tree: dict[str, Any], lines: Lines) -> tuple[Policy | None, list[Problem]]:
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


def _keys(kind: type[Struct]) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(kind)}


def unknown_keys(tree: dict[str, Any], lines: Lines) -> Iterator[Problem]:
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
        for name, inner in PARTS.items():
            if isinstance(table.get(name), dict):
                yield from _unknown(table[name], inner, f"{path}.{name}", lines)
        when = table.get("when") if kind is Rule else None
        if isinstance(when, dict):
            yield from _unknown(when, When, f"{path}.when", lines)
            for name, inner in NESTED.items():
                if isinstance(when.get(name), dict):
                    yield from _unknown(when[name], inner, f"{path}.when.{name}", lines)
    if "default" not in tree:
        yield Problem(level="error", path="default", message="missing; a default is required")


def _unknown(
    table: dict[str, Any], kind: type[Struct], path: str, lines: Lines
) -> Iterator[Problem]:
    allowed = list(_keys(kind))
    for key in table:
        if key in allowed:
            continue
        place = f"{path}.{key}" if path else key
        word = "condition" if kind is When else "key"
        hint = did_you_mean(key, allowed)
        message = f"unknown {word}; {hint}allowed: {', '.join(allowed)}"
        yield Problem(level="error", path=place, message=message, line=lines(place))


def _decode_problem(text: str, tree: dict[str, Any], lines: Lines) -> Problem:
    found = re.search(r" - at `\$\.?([^`]*)`$", text)
    path = _named(found.group(1), tree) if found else ""
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
    if path == "rules" and isinstance(value, dict):
        reason = "a list of tables: write [[rules]], in two brackets"
    message = f"{value!r}: {reason}" if path else reason
    return Problem(level="error", path=path, message=message, line=lines(path))


def _named(path: str, tree: dict[str, Any]) -> str:
    """A key path whose first `[...]`, a table's any key, is the key that is wrong."""
    parent, dots, rest = path.partition("[...]")
    kind = _TABLES.get(parent.rpartition(".")[2])
    if not dots or kind is None:
        return path
    table: Any = tree
    for part in re.findall(r"[^.\[\]]+", parent):
        table = table[int(part)] if isinstance(table, list) else table[part]
    for key, value in table.items():
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return f"{parent}.{key}{rest}"
    return path


def _allowed_words(path: str) -> str:
    """The words of a Literal at a key path: task, wants, days, cache."""
    name = re.sub(r"(\[(\d+|\.\.\.)\])+$", "", path).rsplit(".", 1)[-1]
    for kind in (When, Route, Hours, Objective, Policy):
        for field in msgspec.structs.fields(kind):
            if field.name == name:
                return ", ".join(_literals(field.type))
    return ""


def _literals(kind: Any) -> list[str]:
    words: list[str] = []
    for part in get_args(kind):
        words += [part] if isinstance(part, str) else _literals(part)
    return words
