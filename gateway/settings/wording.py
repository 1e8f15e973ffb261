"""msgspec's findings in a headgate.toml, with key path, value and what is allowed."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from msgspec import inspect

from gateway.settings.tables import Settings

_KINDS = {"array": "list", "object": "table", "str": "string", "bool": "true or false"}
"""msgspec's name of a type → TOML's."""
_A_TIME = "expected string matching regex '^([01]"
"""How msgspec begins to say that a time of day is none."""


def explain(text: str, tree: dict[str, Any]) -> str:
    """A message of `msgspec.ValidationError` about `tree`, for whoever wrote the file."""
    found = re.search(r" - at `\$\.?([^`]*)`$", text)
    path = found.group(1) if found else ""
    reason = text[: found.start()] if found else text
    key = re.search(r"(unknown|required) field `([^`]+)`", reason)
    if key:
        place = f"{path}.{key.group(2)}" if path else key.group(2)
        if key.group(1) == "required":
            return f"{place}: missing; a table of this kind needs it"
        return f"{place}: unknown key; {_instead(key.group(2), _keys(path))}"
    allowed = _words(path) if reason.startswith("Invalid enum value") else ()
    reason = f"one of {', '.join(allowed)}" if allowed else _plain(reason)
    return f"{path}: {_shown(_value(tree, path))}{reason}" if path else reason


def _instead(key: str, allowed: list[str]) -> str:
    near = get_close_matches(key, allowed, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _plain(reason: str) -> str:
    """In TOML's words."""

    def kind(found: "re.Match[str]") -> str:
        names = [name for name in found.group(1).split(" | ") if name != "null"]
        return " or ".join(_KINDS.get(name, name) for name in names)

    words = re.sub(r"`([^`]+)`", kind, reason).replace("Expected", "expected", 1)
    return "HH:MM, 00:00 to 23:59" if words.startswith(_A_TIME) else words


def _value(tree: dict[str, Any], path: str) -> Any:
    """What stands at a key path; None where that cannot be said."""
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return value


def _shown(value: Any) -> str:
    return "" if value is None else f"{value!r}: "


def _keys(path: str) -> list[str]:
    """All that a table may hold."""
    return [
        field.encode_name
        for kind in _kinds(path)
        if isinstance(kind, inspect.StructType)
        for field in kind.fields
        if field.name not in ("state_dir", "source")
    ]


def _words(path: str) -> list[str]:
    """All that a choice may say."""
    return [
        repr(word)
        for kind in _kinds(path)
        if isinstance(kind, inspect.LiteralType)
        for word in kind.values
    ]


def _kinds(path: str) -> list[inspect.Type]:
    """What the types say about a key path."""
    kinds: list[inspect.Type] = [inspect.type_info(Settings)]
    for part in re.findall(r"[^.\[\]]+|\[\.\.\.\]", path):
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    return kinds


def _inside(kind: inspect.Type, part: str) -> Iterable[inspect.Type]:
    if isinstance(kind, inspect.StructType):
        inner = [field.type for field in kind.fields if field.encode_name == part]
    elif isinstance(kind, inspect.ListType):
        inner = [kind.item_type]
    elif isinstance(kind, inspect.DictType):
        inner = [kind.value_type]
    else:
        inner = []
    for one in inner:
        yield from one.types if isinstance(one, inspect.UnionType) else (one,)
