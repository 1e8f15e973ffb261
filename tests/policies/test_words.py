"""docs/routing.md explains the words of a policy file."""

import re
import tomllib
from pathlib import Path

import msgspec

from policies.checker import check
from policies.model import Rule, When

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
WORDS = PAGE.partition("## The words")[2].partition("\n## ")[0]


def test_page_explains_every_condition_and_action() -> None:
    """Each key that a rule may have is named there, and the example is a valid policy."""
    named = set(re.findall(r"`([a-z_]+)", WORDS))
    keys = {field.name for kind in (When, Rule) for field in msgspec.structs.fields(kind)}
    assert keys - named <= {"name"}
    (example,) = re.findall(r"```toml\n(.*?)```", WORDS, re.DOTALL)
    assert check(example, {"nano", "small", "base"}) == []
    assert tomllib.loads(example)["rules"][0].keys() >= {"name", "when"}
