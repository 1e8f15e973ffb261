"""What is wrong with a policy file, and where: levels, key paths, lines."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Literal

from msgspec import Struct

Level = Literal["error", "warning"]


class Problem(Struct, frozen=True, kw_only=True):
    """One thing wrong with a policy file."""

    level: Level
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


class Lines:
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
                self._blocks.setdefault(name, number)
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


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Words that name the nearest of what there is, if one is near."""
    near = get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""
