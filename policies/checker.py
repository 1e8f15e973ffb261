"""Reading a policy file strictly: every problem named, with its line, key path and what is allowed.

`parse()` gives the policy or raises `PolicyError` with all errors found; `check()` lists errors and
warnings, and with the names that exist it also finds targets that do not.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from policies.decoding import NESTED, PARTS, convert, unknown_keys
from policies.described import described
from policies.model import Policy, Route, Rule, Sticky, When
from policies.problems import Lines, PolicyError, Problem
from policies.reachability import check_languages
from policies.targets import check_predicted, check_targets
from policies.values import check_values


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


def check(
    text: str,
    targets: Collection[str] | None = None,
    *,
    predicted: Collection[str] | None = None,
    languages: Collection[str] | None = None,
) -> list[Problem]:
    """Errors and warnings of a policy file, in the order of its lines.

    Args:
        targets: tiers and backends that exist; as a mapping, with the backends behind each. None:
            names of targets are not checked.
        predicted: backends whose quality the head in use predicts; None: not checked.
        languages: codes that the classifier can say; None: not checked.
    """
    policy, problems = _read(text)
    if policy is not None and targets is not None:
        known = targets if isinstance(targets, Mapping) else {name: (name,) for name in targets}
        problems += check_targets(policy, known, Lines(text))
        if predicted is not None:
            problems += check_predicted(policy, known, predicted, Lines(text))
    if policy is not None and languages is not None:
        problems += check_languages(policy, languages, Lines(text))
    return sorted(problems, key=lambda p: (p.line or 0, p.path))


def schema() -> dict[str, Any]:
    """The JSON Schema of a policy file."""
    kinds: list[type[Struct]] = [Policy, Rule, Route, When, Sticky]
    kinds += [*NESTED.values(), *PARTS.values()]
    return described(msgspec.json.schema(Policy), *kinds)


def _read(text: str) -> tuple[Policy | None, list[Problem]]:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found.group(1)) if found else None
        problem = Problem(level="error", path="", message=f"not valid TOML: {error}", line=line)
        return None, [problem]
    lines = Lines(text)
    problems = list(unknown_keys(tree, lines))
    unknown = {problem.path for problem in problems}
    policy, wrong = convert(tree, lines)
    problems += [problem for problem in wrong if problem.path not in unknown]
    if policy is None or problems:
        return None, problems
    return policy, list(check_values(policy, lines))
