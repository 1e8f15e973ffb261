"""What stands under each field of a struct, put into its JSON Schema: editors show it."""

import ast
import inspect
import textwrap
from typing import Any

from msgspec import Struct
from msgspec.structs import fields


def described(schema: dict[str, Any], *kinds: type[Struct]) -> dict[str, Any]:
    """The schema, with a `description` at each property of the structs that has words under it."""
    definitions = dict(schema["$defs"])
    for kind in kinds:
        words = _words(kind)
        known = definitions[kind.__name__]
        properties = {
            name: {**about, "description": words[name]} if name in words else about
            for name, about in known["properties"].items()
        }
        definitions[kind.__name__] = {**known, "properties": properties}
    return {**schema, "$defs": definitions}


def _words(kind: type[Struct]) -> dict[str, str]:
    """The string under each field, by the field's name in files; those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ != kind.__module__:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[name] = " ".join(words.split())
    encoded = {field.name: field.encode_name for field in fields(kind)}
    return {encoded[name]: words for name, words in found.items()}
