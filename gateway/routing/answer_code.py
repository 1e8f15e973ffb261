"""What a few plain lines of Python print, worked out without running them.

Numbers, texts and lists; names, arithmetic, indices, comprehensions over lists, functions of one
`return`, and a few methods. Whatever else stands there, or would grow large, is not worked out.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CODE = re.compile(r"\bprint\(")
_MOST_CODE = 600
_MOST_VALUE = 10**9
_MOST_ITEMS = 200
_MOST_STEPS = 500
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Div: operator.truediv, ast.Mod: operator.mod,
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "len": len, "sum": sum, "max": max, "min": min, "sorted": sorted, "abs": abs, "str": str,
}  # fmt: skip
_METHODS = ("upper", "lower", "title", "strip")


class _Unknown(Exception):
    """Nothing that is worked out here."""


def printed(question: str) -> str | None:
    """What the code in a question prints; None: not known."""
    code = CODE.search(question)
    if code is None:
        return None
    begin = question.find("\n") + 1 if "\n" in question[: code.start()] else code.start()
    try:
        tree = ast.parse(question[begin : begin + _MOST_CODE].strip())
        return _Run().all(tree.body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, MemoryError,
            RecursionError, _Unknown):  # fmt: skip
        return None


class _Run:
    def __init__(self) -> None:
        self._names: dict[str, Any] = {}
        self._functions: dict[str, tuple[Sequence[str], ast.expr]] = {}
        self._steps = 0

    def all(self, body: Sequence[ast.stmt]) -> str:
        """Statement by statement."""
        lines: list[str] = []
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._names[name] = self._of(value, self._names)
                case ast.FunctionDef(
                    name=name, args=given, body=[ast.Return(value=ast.expr() as e)]
                ):
                    self._functions[name] = [one.arg for one in given.args], e
                case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=args, keywords=[])):
                    lines.append(" ".join(str(self._of(one, self._names)) for one in args))
                case _:
                    raise _Unknown
        return "\n".join(lines)

    def _of(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _Unknown
        found: Any
        match node:
            case ast.Constant(value=int() | float() | str() as value):
                found = value
            case ast.Name(id=name):
                found = names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                found = -self._of(operand, names)
            case ast.BinOp(left=left, op=sign, right=right):
                found = self._reckoned(sign, self._of(left, names), self._of(right, names))
            case ast.List(elts=items):
                found = [self._of(item, names) for item in items]
            case ast.Subscript(value=whole, slice=at):
                found = self._of(whole, names)[self._of(at, names)]
            case ast.ListComp(
                elt=each,
                generators=[ast.comprehension(target=ast.Name(id=name), iter=items, ifs=[])],
            ):
                found = [self._of(each, {**names, name: item}) for item in self._of(items, names)]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                found = self._called(name, [self._of(one, names) for one in args])
            case ast.Call(func=ast.Attribute(value=text, attr=name), args=[]) if name in _METHODS:
                found = getattr(str(self._of(text, names)), name)()
            case _:
                raise _Unknown
        return _small(found)

    def _reckoned(self, sign: ast.operator, left: Any, right: Any) -> Any:
        for value in (left, right):
            if isinstance(value, (str, list)) and isinstance(sign, ast.Mult):
                other = right if value is left else left
                if isinstance(other, int) and len(value) * other > _MOST_ITEMS:
                    raise _Unknown
        if type(sign) not in _OPERATORS or (isinstance(left, str) and isinstance(sign, ast.Mod)):
            raise _Unknown
        return _OPERATORS[type(sign)](left, right)

    def _called(self, name: str, given: list[Any]) -> Any:
        if name in self._functions:
            wanted, body = self._functions[name]
            return self._of(body, dict(zip(wanted, given, strict=True)))
        if name not in _FUNCTIONS:
            raise _Unknown
        return _FUNCTIONS[name](*given)


def _small(value: Any) -> Any:
    if isinstance(value, (int, float)) and abs(value) > _MOST_VALUE:
        raise _Unknown
    if isinstance(value, (str, list)) and len(value) > _MOST_ITEMS:
        raise _Unknown
    return value
