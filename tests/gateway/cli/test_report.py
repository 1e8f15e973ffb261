"""`headgate report costs`."""

import asyncio
import csv
import io
import json
import subprocess
import sys
from decimal import Decimal

import pytest

from gateway.cli.database import _that_fit
from gateway.cli.report_output import bar, set_amounts
from gateway.ledger.csv_text import safe_cell
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


@pytest.mark.parametrize("report", ["costs", "cache", "reconcile"])
def test_pictures_are_drawn_beside_every_format(spent: Headgate, report: str) -> None:
    """--plot writes a PNG and leaves the figures on stdout as they are."""
    picture = spent.state_dir / "a.png"
    ask = ("report", report, "--since", "2001-09-08", "--until", "2001-09-10")
    for format_ in ("table", "csv"):
        plain = spent.run(*ask, "--format", format_)
        drawn = spent.run(*ask, "--format", format_, "--plot", str(picture))
        assert (drawn.exit_code, drawn.stdout) == (plain.exit_code, plain.stdout)
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()


def test_pictures_that_cannot_be_are_refused_first(
    spent: Headgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another ending, no such folder, no matplotlib: each says what to do."""
    ask = ("report", "costs", "--plot")
    assert "ends in .png" in spent.run(*ask, "a.jpg").stderr
    assert "no folder" in spent.run(*ask, "nowhere/a.png").stderr
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    missing = spent.run(*ask, "a.png")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "pip install 'headgate[plot]'" in missing.stderr


def test_amounts_and_bars_are_set() -> None:
    """Points below each other, as exact as the largest needs; bars in eighths."""
    assert set_amounts([["1234.5", "-0.004"], [None, "2"]]) == [
        ["1,234.50", "-0.00"],
        ["-", "2.00"],
    ]
    assert set_amounts([["0.010000005"]]) == [["0.010000005"]]
    assert (bar(0.5, 4), bar(1.7, 2), bar(-1, 2), bar(0.05, 10)) == (
        "██  ",
        "██",
        "  ",
        "▌" + 9 * " ",
    )


def test_narrow_terminals_get_the_columns_that_fit() -> None:
    """The first to go first; what cannot go stays."""
    rows = [["search", "1", "2", "3"]]
    columns = ["team", "prompt_tokens", "hits", "cost"]
    assert _that_fit(columns, rows, ("hits", "cost"), columns[1:], 99) == [0, 1, 2, 3]
    assert _that_fit(columns, rows, ("hits", "cost"), columns[1:], 27) == [0, 1, 3]
    assert _that_fit(columns, rows, ("hits", "cost"), columns[1:], 5) == [0, 1]


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


def test_keys_are_called_by_their_names(headgate: Headgate) -> None:
    """Beside the id, which others refer to; also compared, also where one has no name."""
    named = headgate.json("keys", "create", "--team", "search", "--name", "=ci", "--json")["id"]
    _write(
        headgate,
        settlement("r1", key=named, started_at=1e9, charges=(charge("r1", at=1e9),)),
        settlement("r2", key="key_gone", started_at=1e9, charges=(charge("r2", at=1e9),)),
    )
    ask = ("report", "costs", "--group-by", "team,key")
    table = headgate.run(*ask).stdout
    assert f"=ci ({named})" in table
    assert "key_gone" in table
    compared = headgate.json(*ask, "--compare", "2000-01-01..2005-01-01", "--json")
    for found in (headgate.json(*ask, "--json"), compared):
        names = {row["key"]: row["key_name"] for row in found["rows"]}
        assert names == {named: "=ci", "key_gone": None}
    rows = csv.DictReader(io.StringIO(headgate.run(*ask, "--format", "csv").stdout))
    assert {row["key"]: row["key_name"] for row in rows} == {named: "'=ci", "key_gone": ""}


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
    """`--help` imports neither SQLAlchemy, rich tables nor matplotlib."""
    code = (
        "import sys\n"
        "import gateway.cli.report, gateway.cli.keys, gateway.cli.budgets\n"
        "import gateway.cli.db, gateway.cli.teams, migrations\n"
        "heavy = {'sqlalchemy', 'alembic', 'rich.table', 'torch', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(found.stdout.replace("'", '"')) == []


def test_books_at_the_month_s_end(spent: Headgate) -> None:
    """Accounts, a correction, a closed month, an invoice and exports, each by its command."""
    accounts = spent.json("report", "accounts", "--json")
    assert accounts["balance_usd"] == "0"
    assert {line["account"] for line in accounts["accounts"]} >= {"machine:local"}
    corrected = spent.json("report", "correct", "r1", "--cost-usd", "0.02", "--json")
    assert [line["cost_usd"] for line in corrected["booked"]] == ["-0.01", "0.02"]
    again = spent.run("report", "correct", "r1")
    assert (again.exit_code, "reversed already" in again.stderr) == (2, True)
    assert spent.run("report", "correct", "nobody").exit_code == 1
    invoice = ("report", "reconcile", "--invoice", "1.5", "--month", "2001-09", "--discount", "0.5")
    assert spent.json(*invoice, "--json")["difference_usd"] == "2"
    assert spent.json("report", "bill", "2001-09", "--json")["total_usd"] == "1.5"
    assert "closed" in spent.run("report", "close", "2001-09").stdout
    assert spent.run("report", "close", "2001-09").exit_code == 2
    assert spent.run("report", "bill", "2001-13").exit_code == 2
    assert spent.run("report", "reconcile", "--invoice", "1").exit_code == 2


def test_exports_land_where_deleting_finds_them(spent: Headgate) -> None:
    """CSV, Parquet and FOCUS into the state folder; CSV also to stdout."""
    for kind in ("csv", "parquet", "focus"):
        done = spent.run("report", "export", "--format", kind, "--month", "2001-09")
        assert done.exit_code == 0, done.output
    files = sorted(path.name for path in (spent.state_dir / "exports").iterdir())
    assert files == [
        "charges-2001-09.csv",
        "charges-2001-09.focus.csv",
        "charges-2001-09.parquet",
    ]
    rows = list(csv.DictReader(io.StringIO(spent.run("report", "export", "--out", "-").stdout)))
    assert [row["cost_usd"] for row in rows] == ["0.01", "0.000000005"]
    assert spent.run("report", "export", "--format", "focus").exit_code == 2
    deleted = spent.json("data", "delete", "--user", "ann", "--json")["stores"]
    assert (deleted["exports"], deleted["requests and charges"]) == (2, 2)


def test_compared_report_in_all_formats(spent: Headgate) -> None:
    """`--compare` adds the other period's cost to every format."""
    ask = ("report", "costs", "--group-by", "team", "--since", "2001-09-01", "--until",
           "2001-10-01", "--compare", "previous")  # fmt: skip
    found = spent.json(*ask, "--json")
    assert found["compare"]["since"] == "2001-08-01T00:00:00Z"
    assert found["rows"][0]["previous"]["requests"] == 0
    rows = list(csv.DictReader(io.StringIO(spent.run(*ask, "--format", "csv").stdout)))
    assert rows[0]["previous_cost_usd"] == "0"
    assert "previous" in spent.run(*ask).stdout


def test_data_commands_say_what_is_there(spent: Headgate) -> None:
    """A dry run counts, deletes and prints nothing; exactly one subject; the export names every
    store."""
    dry = spent.json("data", "delete", "--user", "ann", "--dry-run", "--json")
    assert dry["stores"]["requests and charges"] == 2
    assert spent.json("data", "export", "--user", "ann", "--dry-run", "--json") == dry
    exported = spent.json("data", "export", "--user", "ann")
    assert exported["stores"]["requests and charges"][0]["user"] == "ann"
    (act,) = spent.json("audit", "--action", "data.export", "--json")
    assert act["target"] == "user:ann"
    assert spent.run("data", "export").exit_code == 2
    assert spent.run("data", "delete", "--user", "a", "--team", "b").exit_code == 2
    assert "deleted" in spent.run("data", "delete", "--user", "ann").stdout
    assert "nothing is stored of user 'amn'" in spent.run("data", "delete", "--user", "amn").stdout
    assert spent.json("data", "delete", "--user", "ann", "--json")["stores"]["keys"] == 0
    acts = spent.json("audit", "--action", "data.delete", "--json")
    assert [(act["target"], act["outcome"]) for act in acts] == [("user", "done")] * len(acts)
    assert len(acts) >= 2
    assert "ann" not in str([act["details"] for act in acts])
    (act,) = spent.json("audit", "--action", "data.export", "--json")
    assert act["target"] == "deleted"


def test_db_prune_and_check_after_it(spent: Headgate) -> None:
    """Rows of 2001 go; the check still finds everything in order."""
    assert spent.run("db", "prune").exit_code == 2
    assert spent.json("db", "prune", "--days", "30", "--json")["requests"] == 2
    checked = spent.json("db", "check", "--json")
    assert (checked["ok"], checked["differences"]) == (True, [])
    assert spent.run("db", "check", "--anchor", "x").exit_code == 2
    assert spent.run("db", "check", "--rebuild").exit_code == 0
