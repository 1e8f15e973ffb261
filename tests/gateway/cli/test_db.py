"""`headgate db`."""

import sqlite3
from pathlib import Path

import pytest

from migrations import runner
from tests.gateway.cli.conftest import Headgate


def test_upgrade_makes_the_schema_and_check_agrees(headgate: Headgate) -> None:
    """An empty database fails the check, an upgraded one passes."""
    empty = headgate.run("db", "check")
    assert empty.exit_code == 1
    assert "headgate db upgrade" in empty.stderr
    assert headgate.json("db", "upgrade", "--json")["revision"] == runner.head()
    checked = headgate.json("db", "check", "--json")
    assert (checked["ok"], checked["differences"]) == (True, [])
    assert "revision" in headgate.run("db", "check").stdout


def test_check_names_what_differs(headgate: Headgate) -> None:
    """A table that somebody dropped is named, and so is a column that somebody added."""
    headgate.run("db", "upgrade")
    with sqlite3.connect(headgate.state_dir / "headgate.db") as connection:
        connection.execute("DROP TABLE teams")
        connection.execute("ALTER TABLE charges ADD COLUMN mine TEXT")
    connection.close()
    result = headgate.run("db", "check")
    assert result.exit_code == 1
    assert "table 'teams' is missing" in result.stdout
    assert "column 'mine' of table 'charges' is not of this version" in result.stdout


def test_check_looks_past_tables_of_others(headgate: Headgate) -> None:
    """Somebody's table in the same database neither fails the check nor hides the books from it."""
    headgate.run("db", "upgrade")
    with sqlite3.connect(headgate.state_dir / "headgate.db") as connection:
        connection.execute("CREATE TABLE theirs (id INTEGER)")
    connection.close()
    checked = headgate.json("db", "check", "--json")
    assert (checked["ok"], checked["differences"]) == (True, [])
    assert "chain" in str(checked)


def test_unreachable_and_newer_databases_fail_clearly(
    headgate: Headgate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No server, no database, a schema from the future: exit 1, and no password shown."""
    secret = "postgresql+asyncpg://me:hunter2@127.0.0.1:1/none"
    monkeypatch.setenv("HEADGATE_DATABASE_URL", secret)
    for command in (["db", "upgrade"], ["db", "check"], ["keys", "list"]):
        result = headgate.run(*command)
        assert result.exit_code == 1
        assert "hunter2" not in result.output
        assert "127.0.0.1" in result.stderr
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"no database" * 100)
    monkeypatch.setenv("HEADGATE_DATABASE_URL", f"sqlite+aiosqlite:///{junk}")
    assert headgate.run("db", "upgrade").exit_code == 1
    monkeypatch.delenv("HEADGATE_DATABASE_URL")
    headgate.run("db", "upgrade")
    with sqlite3.connect(headgate.state_dir / "headgate.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    newer = headgate.run("db", "upgrade")
    assert newer.exit_code == 1
    assert "of a newer Headgate" in newer.stderr


def test_sqlite_has_no_partitions(headgate: Headgate) -> None:
    """The command says so and changes nothing."""
    refused = headgate.run("db", "partition")
    assert refused.exit_code == 2
    assert "only PostgreSQL has partitions" in refused.stderr
    assert headgate.json("db", "check", "--json")["ok"]
