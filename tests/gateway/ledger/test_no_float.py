"""Money is int or Decimal, from the request to the bill: checked in the code and in its types."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger

import gateway.ledger
from gateway.ledger.money import MAX_NANO_USD, parse_usd, to_nano, to_usd, usd_text
from gateway.ledger.tables import metadata

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "gateway" / "ledger").glob("*.py"))
_NOT_MONEY = {"share"}
"""Functions whose result is a ratio, said to be none by their docstrings."""


def _is_money(name: str) -> bool:
    return name.endswith("_usd") or "nano_usd" in name or name in ("nano", "nano_usd", "usd")


def _names(node: ast.AST) -> set[str]:
    """Names and attributes in an expression, calls' results by their function's name."""
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return found | {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def float_money(source: str) -> list[str]:
    """Every place where an amount meets a float, as "line: why"."""
    tree = ast.parse(source)
    ratios = {
        line
        for function in _functions(tree)
        if function.name in _NOT_MONEY
        for line in range(function.lineno, (function.end_lineno or 0) + 1)
    }
    nodes = [node for node in ast.walk(tree) if getattr(node, "lineno", 0) not in ratios]
    return [
        f"{getattr(node, 'lineno', 0)}: {why}" for node in nodes for why in _float_money_at(node)
    ]


def _float_money_at(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        sides = (node.left, node.right)
        literal = any(isinstance(s, ast.Constant) and isinstance(s.value, float) for s in sides)
        if literal and any(map(_is_money, _names(node))):
            yield "an amount and a float literal"
        operands = [getattr(side, "id", getattr(side, "attr", "")) for side in sides]
        if isinstance(node.op, ast.Div) and any(map(_is_money, operands)):
            yield "an amount is divided by /"
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("float", "round"):
        if any(_is_money(name) for argument in node.args for name in _names(argument)):
            yield f"an amount goes through {ast.unparse(node.func)}()"
    elif isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
        target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
        if _is_money(target) and "float" in _names(node.annotation):
            yield f"{target} is annotated float"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returned = _names(node.returns) if node.returns is not None else set()
        if _is_money(node.name) and "float" in returned:
            yield f"{node.name} returns float"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_of_the_ledger_mixes_money_and_floats(file: Path) -> None:
    """No float literal, no /, no float(), no annotation: in any file of the ledger."""
    assert float_money(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "x = cost_nano_usd * 1.5",
        "x = charge.cost_nano_usd / 2",
        "x = float(limit_nano_usd)",
        "cost_usd: float = 0",
        "def f(price_usd: float | None) -> None: ...",
        "def spent_usd() -> float: ...",
        "x = round(a.cost_nano_usd * ratio)",
    ],
)
def test_the_check_sees_floats(source: str) -> None:
    """Each way to lose a nano-dollar is found."""
    assert float_money(source) != []


def test_fields_and_columns_of_money_are_whole_numbers_or_decimals() -> None:
    """By their types: structs' fields are int, Decimal or str; columns BIGINT."""
    fields = 0
    for info in pkgutil.iter_modules(gateway.ledger.__path__):
        module = importlib.import_module(f"gateway.ledger.{info.name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if not issubclass(kind, msgspec.Struct) or kind.__module__ != module.__name__:
                continue
            for name, hint in typing.get_type_hints(kind).items():
                if _is_money(name):
                    fields += 1
                    kinds = set(typing.get_args(hint) or (hint,))
                    assert kinds <= {int, Decimal, str, type(None)}, f"{kind.__name__}.{name}"
    assert fields > 10
    for table in metadata.tables.values():
        for column in table.c:
            if _is_money(column.name):
                assert isinstance(column.type, BigInteger), f"{table.name}.{column.name}"


def test_mypy_refuses_a_float_for_money(tmp_path: Path) -> None:
    """Every assignment of a float to an amount is a type error, so `make check` finds it."""
    refused = (
        "ChargeRecord(request_id='', seq=0, kind='answer', backend='', at=0, cost_nano_usd=0.5)",
        "to_usd(0.5)",
        "parse_usd(1.5)",
        "machine_cost(1, 0.1)",
        "to_nano(0.1)",
    )
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from gateway.ledger.money import parse_usd, to_nano, to_usd\n"
        "from gateway.ledger.pricing import machine_cost\n"
        "from gateway.ledger.records import ChargeRecord\n" + "\n".join(refused) + "\n"
    )
    config = tmp_path / "mypy.ini"
    config.write_text(
        "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n"
        "[mypy-torch.*,numpy.*,redis.*,matplotlib.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--output", "json", "--config-file", str(config),
         "--cache-dir", str(tmp_path / "cache"), str(snippet)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = {json.loads(line)["line"] for line in done.stdout.splitlines() if line[0] == "{"}
    assert lines == set(range(4, 4 + len(refused))), done.stdout + done.stderr


@given(st.integers(-MAX_NANO_USD, MAX_NANO_USD))
def test_decimal_strings_round_trip(nano_usd: int) -> None:
    """Nano-dollars → string → nano-dollars, and through Decimal dollars, change nothing."""
    text = usd_text(nano_usd)
    assert parse_usd(text) == nano_usd
    assert to_nano(to_usd(nano_usd)) == nano_usd
    assert "e" not in text.lower()
    assert text == "0" or not text.endswith(".")
    assert Decimal(text) == to_usd(nano_usd)


@pytest.mark.parametrize("text", ["", "1,5", "NaN", "inf", "1e30", "$5", "0x10", "--1", "9" * 400])
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Nothing that looks like money but is none, or more than the ledger holds, is taken."""
    with pytest.raises(ValueError, match=r"dollars|money"):
        parse_usd(text)
