"""`headgate policy history|rollback` on versions that decided."""

import asyncio
from pathlib import Path

import pytest

from gateway.ledger.database import open_engine
from gateway.routing.policy_book import PolicyBook
from gateway.routing.policy_history import PolicyHistory
from gateway.settings import RoutingSettings
from tests.gateway.cli.conftest import Headgate

FIRST = '[default]\nroute = "nano"\n'
SECOND = '[default]\nroute = "small"\n'


@pytest.fixture
def decided(headgate: Headgate, tmp_path: Path) -> Headgate:
    """Two versions of `mine`, noted as a gateway does."""
    assert headgate.json("policy", "history", "--json") == {"versions": []}
    file = tmp_path / "policies" / "mine.toml"
    file.parent.mkdir()

    async def note() -> None:
        engine = open_engine(headgate.database_url)
        times = iter((1_000.0, 2_000.0))
        history = PolicyHistory(engine, lambda: next(times))
        for text in (FIRST, SECOND):
            file.write_text(text)
            routing = RoutingSettings(policy="mine", policy_dirs=[str(file.parent)])
            history.note(PolicyBook(routing).get())
        await history.start()
        await history.aclose()
        await engine.dispose()

    asyncio.run(note())
    return headgate


def test_history_lists_versions_and_rollback_brings_one_back(
    decided: Headgate, tmp_path: Path
) -> None:
    """The newest first; the file afterwards is the earlier one, byte by byte."""
    versions = decided.json("policy", "history", "mine", "--json")["versions"]
    assert [v["first_decided"] for v in versions] == [
        "1970-01-01T00:33:20Z",
        "1970-01-01T00:16:40Z",
    ]
    old = versions[1]["sha256"]
    assert f"mine@{old[:8]}" in decided.run("policy", "history").stdout
    done = decided.run("policy", "rollback", f"mine@{old[:8]}")
    assert done.exit_code == 0, done.output
    file = tmp_path / "policies" / "mine.toml"
    assert file.read_text() == FIRST
    assert PolicyBook(RoutingSettings(policy="mine", policy_dirs=[str(file.parent)])).get()


@pytest.mark.parametrize(("version", "code"), [("mine@ffff", 1), ("mine", 2), ("nobody@00", 1)])
def test_rollback_to_what_never_decided_is_refused(
    decided: Headgate, tmp_path: Path, version: str, code: int
) -> None:
    """Nothing is written, and the message says where to look."""
    assert decided.run("policy", "rollback", version).exit_code == code
    assert (tmp_path / "policies" / "mine.toml").read_text() == SECOND
