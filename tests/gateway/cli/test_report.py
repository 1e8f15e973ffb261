"""`headgate report costs`."""

import asyncio
import csv
import io
import json
import subprocess
import sys
from decimal import Decimal

import pytest

from gateway.cli.report import safe_cell
from gateway.ledger.database import open_engine
from gateway.ledger.records import Settlement
from gateway.ledger.repository import Repository
from tests.gateway.cli.conftest import Headgate
from tests.gateway.ledger.samples import charge, settlement


def _write(headgate: Headgate, *rows: Settlement) -> None:
    async def write() -> None:
        engine = open_engine(headgate.database_url)
        await Repository(engine).write(rows)
        await engine.dispose()

    assert headgate.run("db", "upgrade").exit_code == 0
    asyncio.run(write())


@pytest.fixture
def spent(headgate: Headgate) -> Headgate:
    """A ledger of two teams, one of them with a hostile name."""
    _write(
        headgate,
        settlement("r1", started_at=1e9, charges=(charge("r1", at=1e9, cost_nano_usd=10**7),)),
        settlement(
            "r2",
            team="=cmd|' /C calc'!A0",
            tags={"feature": "@SUM(A1)", "env": "[bold]x[/bold]"},
            started_at=1e9,
            charges=(charge("r2", at=1e9, cost_nano_usd=5),),
        ),
    )
    return headgate


def test_report_is_the_same_in_all_formats(spent: Headgate) -> None:
    """Table, JSON and CSV show the same rows; JSON has the contract's fields."""
    ask = ("report", "costs", "--group-by", "team,backend")
    found = spent.json(*ask, "--format", "json")
    assert found == {**spent.json(*ask, "--json"), "until": found["until"]}
    assert found["group_by"] == ["team", "backend"]
    assert found["rows"][0]["cost_usd"] == "0.01"
    assert found["totals"]["cost_usd"] == "0.010000005"
    text = spent.run(*ask, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["cost_usd"] for row in rows] == [row["cost_usd"] for row in found["rows"]]
    assert list(rows[0]) == ["team", "backend", *found["totals"]]
    table = spent.run(*ask).stdout
    for words in ("search", "0.010000005", "total", "unattributed"):
        assert words in table


def test_csv_holds_no_formulas(spent: Headgate) -> None:
    """Cells that a spreadsheet would run get an apostrophe; numbers and plain text do not."""
    text = spent.run("report", "costs", "--group-by", "team,tag:feature", "--format", "csv").stdout
    rows = list(csv.reader(io.StringIO(text)))
    cells = {cell for row in rows for cell in row[:2]}
    assert cells == {"team", "tag:feature", "search", "faq", "'=cmd|' /C calc'!A0", "'@SUM(A1)"}
    assert safe_cell("-1+1") == "'-1+1"
    assert safe_cell("\tx") == "'\tx"
    assert safe_cell(None) == ""
    assert safe_cell("a=b") == "a=b"


def test_table_takes_names_literally(spent: Headgate) -> None:
    """Markup in a tag is shown, not obeyed."""
    assert "[bold]x[/bold]" in spent.run("report", "costs", "--group-by", "tag:env").stdout


def test_period_and_filters_narrow(spent: Headgate) -> None:
    """--since, --until, --tz and --where are passed on."""
    ask = ("report", "costs", "--json")
    assert spent.json(*ask, "--since", "2001-09-10")["totals"]["requests"] == 0
    early = ("--since", "2001-09-09", "--until", "2001-09-10")
    assert spent.json(*ask, *early)["totals"]["requests"] == 2
    assert spent.json(*ask, *early, "--tz", "Pacific/Kiritimati")["totals"]["requests"] == 2
    narrowed = spent.json(*ask, "--where", "team=search")
    assert Decimal(narrowed["totals"]["cost_usd"]) == Decimal("0.01")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--group-by", "nonsense"],
        ["--since", "2026-02-30"],
        ["--until", "soon"],
        ["--since", "2026-02-02", "--until", "2026-02-01"],
        ["--tz", "Nowhere/At_All"],
        ["--format", "xml"],
        ["--where", "team"],
        ["--where", "colour=red"],
    ],
)
def test_bad_questions_exit_2(headgate: Headgate, wrong: list[str]) -> None:
    """The value and what is allowed stand on stderr; stdout stays empty."""
    result = headgate.run("report", "costs", *wrong)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert wrong[1].split("=")[0] in result.stderr


def test_help_starts_without_heavy_imports() -> None:
    """`--help` imports neither SQLAlchemy nor rich tables."""
    code = (
        "import sys\n"
        "import gateway.cli.report, gateway.cli.keys, gateway.cli.budgets\n"
        "import gateway.cli.db, gateway.cli.teams, migrations\n"
        "print(sorted({'sqlalchemy', 'alembic', 'rich.table', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(found.stdout.replace("'", '"')) == []
