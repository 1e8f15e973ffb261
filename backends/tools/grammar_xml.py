"""Calls in Qwen3-Coder's tags, as rules of a grammar: one tag for each parameter, in order."""

import json
from collections.abc import Mapping
from typing import Any, Final

from backends.sampling.grammar import FormRefusedError, json_options
from backends.tools.asked import Function
from backends.tools.call_xml import is_text, resolved, words_of

_END: Final = '"\\n</parameter>\\n"'
_ANY_TEXT: Final = r"/(.|\n)*\n<\/parameter>\n/"
_KEPT: Final = frozenset({"type", "properties", "required", "additionalProperties", "$defs"})
_LIMITS: Final = ("pattern", "minLength", "maxLength", "format")
"""Of strings: as they stand between tags they can be anything."""


def xml_rules(rule: str, function: Function) -> list[str]:
    """The rules of a function's calls; `rule` is the first one's name.

    Raises:
        FormRefusedError: it is strict, and its schema asks for more than tags can keep to.
    """
    schema = function.parameters or {}
    if function.strict:
        _refuse_unkept(function.name, schema)
    parts, lines = [], []
    for place, key in enumerate(schema.get("properties") or {}):
        part = f"{rule}_{place}"
        parts.append(part if key in (schema.get("required") or ()) else f"{part}?")
        value = _value(f"{part}_value", resolved(schema, key), schema, strict=bool(function.strict))
        tag = json.dumps(f"<parameter={key}>\n")
        lines += [f"{part}: {tag} {value[0]}", *value[1:]]
    head = json.dumps(f"<function={function.name}>\n")
    return [f'{rule}: {head} {" ".join(parts)} "</function>"', *lines]


def _value(
    rule: str, wanted: Mapping[str, Any], schema: Mapping[str, Any], *, strict: bool
) -> list[str]:
    """What stands for a value and its end, and the rules that it needs."""
    if words := words_of(wanted):
        return [f"({' | '.join(map(json.dumps, words))}) {_END}"]
    if is_text(wanted):
        return [rule, f"{rule}[lazy]: {_ANY_TEXT}"]
    own = {**wanted, "$defs": schema.get("$defs", {}), "x-guidance": json_options(strict=strict)}
    return [f"%json {json.dumps(own)} {_END}"]


def _refuse_unkept(name: str, schema: Mapping[str, Any]) -> None:
    unkept = [key for key in schema if key not in _KEPT | {"title", "description"}]
    for key in schema.get("properties") or {}:
        wanted = resolved(schema, key)
        if is_text(wanted):
            unkept += [f"{key}.{limit}" for limit in _LIMITS if limit in wanted]
    if unkept:
        raise FormRefusedError(
            f"Parameters of the function {name!r}: this model writes them between tags, where "
            f"{', '.join(unkept)} cannot be enforced; leave it out, or 'strict'.",
            param="tools",
        )
