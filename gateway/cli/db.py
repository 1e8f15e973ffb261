"""`headgate db`: the ledger's database."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.processes.runtime import database_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_OLD_SCHEMA = "the schema is not the newest; run `headgate db upgrade`"


@click.group()
def db() -> None:
    """Upgrade and check the database."""


@db.command()
@config_option
@json_option
@click.pass_context
def upgrade(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Bring the schema up to date; `headgate serve` does it by itself."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.database import without_password
    from migrations import runner

    url = database_url(settings_of(ctx, config))
    try:
        revision = runner.upgrade(url)
    except (SQLAlchemyError, OSError, CommandError) as error:
        fail(
            f"the database {without_password(url)} cannot be upgraded: {str(error).splitlines()[0]}"
        )
    if as_json:
        print_json({"url": without_password(url), "revision": revision})
    else:
        click.echo(f"{without_password(url)} is at revision {revision}.")


@db.command()
@click.option(
    "--anchor",
    metavar="N:SHA256",
    help="A link of the audit chain as noted after an earlier check.",
)
@click.option("--rebuild", is_flag=True, help="First write the roll-ups again from the rows.")
@config_option
@json_option
@click.pass_context
def check(
    ctx: click.Context, anchor: str | None, rebuild: bool, config: str | None, as_json: bool
) -> None:
    """Compare schema, roll-ups, reversals and audit chain with what they should be; exits 1."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.database import without_password
    from migrations import runner

    url = database_url(settings_of(ctx, config))
    try:
        revision, head = runner.current(url), runner.head()
        problems = runner.differences(url) if revision == head else [_OLD_SCHEMA]
        found = asyncio.run(_contents(url, _link(anchor), rebuild)) if not problems else {}
    except (SQLAlchemyError, OSError, CommandError) as error:
        fail(f"the database {without_password(url)} cannot be read: {str(error).splitlines()[0]}")
    problems += found.pop("problems", [])
    shown = {"url": without_password(url), "ok": not problems, "revision": revision, "head": head}
    shown |= {"differences": problems, **found}
    if as_json:
        print_json(shown)
        ctx.exit(1 if problems else 0)
    click.echo(f"{shown['url']}: revision {revision or 'none'}, newest {head}")
    for problem in problems:
        click.echo(f"  {problem}")
    if found.get("chain_links"):
        click.echo(f"audit chain: {found['chain_links']} links, the last {found['chain_anchor']}")
    if problems:
        fail(f"not as it should be: {problems[0]}")


@db.command()
@click.option("--days", type=click.IntRange(1), help="Default: [database] retention_days.")
@config_option
@json_option
@click.pass_context
def prune(ctx: click.Context, days: int | None, config: str | None, as_json: bool) -> None:
    """Remove requests and charges that are older; their sums stay. A gateway does it every hour."""
    from gateway.cli.database import run_on_engine
    from gateway.ledger import retention
    from gateway.ledger.audit import Act, command_line_actor, record

    settings = settings_of(ctx, config)
    kept = days or settings.database.retention_days
    if kept is None:
        fail("how many days are to be kept? --days N, or [database] retention_days", code=2)

    async def work(engine: "AsyncEngine") -> int:
        count = await retention.prune(engine, retention_days=kept, now=time.time())
        act = Act(
            actor=command_line_actor(),
            action="db.prune",
            details={"retention_days": kept, "requests": count},
        )
        async with engine.begin() as connection:
            await record(connection, act)
        return count

    gone = run_on_engine(settings, work)
    if as_json:
        print_json({"retention_days": kept, "requests": gone})
    else:
        click.echo(f"{gone} requests older than {kept} days are gone; their sums stay.")


@db.command()
@click.option("--undo", is_flag=True, help="Back to whole tables; copies every row.")
@config_option
@click.pass_context
def partition(ctx: click.Context, undo: bool, config: str | None) -> None:
    """Keep requests and charges by months on PostgreSQL, so that old ones are dropped at once.

    From the next month on; what is there stays where it is. Writers wait meanwhile; a gateway goes
    on answering.
    """
    from gateway.cli.database import run_on_engine
    from gateway.ledger import partitions
    from gateway.ledger.audit import Act, command_line_actor, record

    async def work(engine: "AsyncEngine") -> None:
        if engine.dialect.name != "postgresql":
            raise ValueError("only PostgreSQL has partitions, and the database is SQLite")
        async with partitions.patient(engine) as connection:
            if await partitions.partitioned(connection) is not undo:
                raise ValueError(f"the ledger has {'no partitions' if undo else 'them already'}")
            if undo:
                await partitions.end(connection)
            else:
                await partitions.begin(connection, now=time.time())
            action = "db.unpartition" if undo else "db.partition"
            await record(connection, Act(actor=command_line_actor(), action=action))

    run_on_engine(settings_of(ctx, config), work)
    click.echo(
        "requests and charges are whole tables" if undo else "from the next month on, by months"
    )


def _link(anchor: str | None) -> tuple[int, str] | None:
    if anchor is None:
        return None
    number, _, sha256 = anchor.partition(":")
    if not number.isdecimal() or len(sha256) != 64:
        fail(f"--anchor {anchor!r}: N:SHA256, as an earlier check printed it", code=2)
    return int(number), sha256


async def _contents(url: str, anchor: tuple[int, str] | None, rebuild: bool) -> dict[str, Any]:
    """What the ledger's own check finds; problems, first of all."""
    from gateway.ledger import check as ledger_check
    from gateway.ledger.audit import Act, command_line_actor, record
    from gateway.ledger.database import open_engine, writing
    from gateway.ledger.report_lines import snapshot

    engine = open_engine(url)
    try:
        if rebuild:
            async with writing(engine) as connection:
                await ledger_check.rebuild_rollups(connection)
                await record(connection, Act(actor=command_line_actor(), action="db.rebuild"))
        async with snapshot(engine) as connection:
            problems = await ledger_check.rollup_problems(connection)
            problems += await ledger_check.row_problems(connection)
            problems += await ledger_check.unchained_problems(connection)
            chain = await ledger_check.check_chain(connection, anchor=anchor)
    finally:
        await engine.dispose()
    return {
        "problems": [*problems, *([f"audit chain: {chain.problem}"] if chain.problem else [])],
        "chain_links": chain.links,
        "chain_anchor": f"{chain.links}:{chain.head}" if chain.head else None,
    }
