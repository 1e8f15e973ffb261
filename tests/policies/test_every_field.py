"""A mistake in any field of a policy file is named with file, line and key."""

from collections.abc import Iterator

import msgspec
import pytest
from msgspec import Struct

from policies.checker import check, parse, schema
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
from policies.problems import PolicyError

TABLES: dict[str, type[Struct]] = {
    "": Policy,
    "sticky": Sticky,
    "rules[0]": Rule,
    "rules[0].when": When,
    "rules[0].when.difficulty": Range,
    "rules[0].when.prompt_tokens": Range,
    "rules[0].when.turns": Range,
    "rules[0].when.budget_left": Range,
    "rules[0].when.load": BackendRange,
    "rules[0].when.quality": BackendRange,
    "rules[0].when.hours": Hours,
    "rules[0].objective": Objective,
    "rules[0].accept": Accept,
    "rules[0].hedge": Hedge,
    "default": Route,
    "default.objective": Objective,
    "default.accept": Accept,
    "default.hedge": Hedge,
}
"""Every table of a policy file."""
WRONG = "1979-05-27"
"""A date is wrong everywhere."""


def fields_of(table: str) -> Iterator[str]:
    """Keys of a table that are no tables themselves."""
    for field in msgspec.structs.fields(TABLES[table]):
        place = f"{table}.{field.encode_name}".lstrip(".")
        if place not in TABLES and place != "rules":
            yield field.encode_name


def all_wrong() -> tuple[str, dict[str, int]]:
    """A policy file with a mistake in each field, and the line of each key path."""
    lines: list[str] = []
    where: dict[str, int] = {}
    for table in TABLES:
        if table:
            name = table.replace("rules[0]", "rules")
            lines.append("[[rules]]" if name == "rules" else f"[{name}]")
        for key in fields_of(table):
            lines.append(f"{key} = {WRONG}")
            where[f"{table}.{key}".lstrip(".")] = len(lines)
    return "\n".join(lines), where


def test_mistake_in_each_field_is_named_with_file_line_and_key() -> None:
    """All of them at once, in the order of the lines."""
    text, where = all_wrong()
    assert len(where) > 80, "the tables above are not those of a policy file any more"
    with pytest.raises(PolicyError) as caught:
        parse(text, "mine.toml")
    found = {problem.path: problem.line for problem in caught.value.problems}
    assert found == where
    words = str(caught.value).splitlines()
    for path, line in where.items():
        assert any(w.startswith(f"mine.toml: line {line}: {path}: ") for w in words), path


def test_wrong_types_and_unknown_keys_are_found_together() -> None:
    """One run of `policy check` tells all that reading can."""
    text = '[default]\nroute = 7\nfallback = ["x"]\nmax_tokens = "many"\n'
    found = [(problem.path, problem.line) for problem in check(text)]
    assert found == [("default.route", 2), ("default.fallback", 3), ("default.max_tokens", 4)]


@pytest.mark.parametrize("missing", ["rules[0]", "rules[0].when.hours"])
def test_missing_field_is_named_by_its_table(missing: str) -> None:
    """A rule without a name, hours without an end: the table's line."""
    rule = (
        '[[rules]]\nroute = "a"\n'
        if missing == "rules[0]"
        else ('[[rules]]\nname = "r"\nroute = "a"\nwhen = { hours = { from = "08:00" } }\n')
    )
    (problem,) = check(rule + '[default]\nroute = "a"\n')
    assert problem.path == missing
    assert problem.line in (1, 4)
    assert "missing required field" in problem.message


def test_schema_describes_every_table_and_field() -> None:
    """What editors complete is what the checker knows, with descriptions of the tables."""
    defined = schema()["$defs"]
    for kind in set(TABLES.values()):
        known = defined[kind.__name__]
        assert set(known["properties"]) == {
            field.encode_name for field in msgspec.structs.fields(kind)
        }
        assert known["additionalProperties"] is False
        assert known["description"]
    words = defined["Rule"]["properties"]["fallbacks"]["description"]
    assert words.startswith("Tiers or backends to try next")
    assert "from" in defined["Hours"]["properties"]
