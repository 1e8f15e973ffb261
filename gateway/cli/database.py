"""For commands that work on the ledger's database itself; not a command.

They go to the database whether or not a gateway runs: one on this host sees new keys, revocations
and budgets at once, others within two seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.cli.common import fail, log_to_stderr
from gateway.ledger.stamp import touch
from gateway.processes.runtime import database_url
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from gateway.ledger.audit import ActOutcome

T = TypeVar("T")


def run_on_engine(settings: Settings, work: Callable[["AsyncEngine"], Awaitable[T]]) -> T:
    """Bring the database up to date and run `work`; exits 1 or 2 with a clear message."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.database import open_engine, without_password
    from migrations import upgrade

    log_to_stderr()
    url = database_url(settings)

    async def run() -> T:
        engine = open_engine(url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    try:
        upgrade(url)
        return asyncio.run(run())
    except LookupError as error:
        fail(str(error.args[0]))
    except ValueError as error:
        fail(str(error), code=2)
    except (SQLAlchemyError, OSError, CommandError) as error:
        fail(f"the database {without_password(url)} refuses: {str(error).splitlines()[0]}")


def run_in_transaction(
    settings: Settings,
    work: Callable[["AsyncConnection"], Awaitable[T]],
    *,
    act: tuple[str, str] | None = None,
    details: Callable[[T], Mapping[str, Any]] = lambda _: {},
) -> T:
    """`run_on_engine` with one transaction, committed at the end.

    Args:
        act: action and target for the audit log, of work that changes something; gateways on this
            host then look again at once. What fails stands there too.
        details: of what was done, for the audit log.
    """

    async def run(engine: "AsyncEngine") -> T:
        try:
            async with engine.begin() as connection:
                result = await work(connection)
                if act is not None:
                    await _audit(connection, act, "done", details(result))
                return result
        except (LookupError, ValueError) as error:
            if act is not None:
                async with engine.begin() as connection:
                    await _audit(connection, act, "failed", {"why": str(error.args[0])})
            raise

    result = run_on_engine(settings, run)
    if act is not None:
        touch(Path(settings.state_dir))
    return result


async def _audit(
    connection: "AsyncConnection",
    act: tuple[str, str],
    outcome: "ActOutcome",
    details: Mapping[str, Any],
) -> None:
    from gateway.ledger.audit import Act, command_line_actor, record

    action, target = act
    told = {name: value for name, value in details.items() if value not in (None, "", [], {})}
    actor = command_line_actor()
    await record(
        connection, Act(actor=actor, action=action, target=target, outcome=outcome, details=told)
    )


def moment(unix_s: float | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def table(
    columns: list[str],
    rows: list[list[str]],
    *,
    right: Collection[str] = (),
    total: list[str] | None = None,
    spare: Sequence[str] = (),
) -> None:
    """Print a table; nothing in a cell is taken for markup.

    Args:
        right: columns of numbers; their names may break between words.
        total: a last row, under a line of its own.
        spare: columns to leave out, in this order, where the terminal is too narrow for all.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:  # a pipe has no width: cut nothing
        console = Console(width=max(200, console.width))
    everything = [*rows, *([total] if total else [])]
    kept = _that_fit(columns, everything, spare, right, console.width)
    shown = Table()
    for index in kept:
        numeric = columns[index] in right
        name = Text(columns[index].replace("_", " ") if numeric else columns[index])
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(row[index]) for index in kept))
    if total:
        shown.add_section()
        shown.add_row(*(Text(total[index], style="bold") for index in kept))
    console.print(shown)
    left_out = [name for index, name in enumerate(columns) if index not in kept]
    if left_out:
        console.print(Text(f"Too narrow for {', '.join(left_out)}."), style="dim")


def _that_fit(
    columns: list[str],
    rows: list[list[str]],
    spare: Sequence[str],
    right: Collection[str],
    room: int,
) -> list[int]:
    """Places of the columns that stand side by side in `room` characters."""
    widths = []
    for index, name in enumerate(columns):
        words = name.split("_") if name in right else [name]
        widths.append(max(map(len, (*words, *(row[index] for row in rows)))) + 3)
    kept = list(range(len(columns)))
    for name in spare:
        if sum(widths[index] for index in kept) < room:
            break
        kept.remove(columns.index(name))
    return kept
