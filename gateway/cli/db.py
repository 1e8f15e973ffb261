"""`headgate db`: the ledger's database."""

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.runtime import database_url


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
        fail(f"the database {without_password(url)} cannot be upgraded: {error}")
    if as_json:
        print_json({"url": without_password(url), "revision": revision})
    else:
        click.echo(f"{without_password(url)} is at revision {revision}.")


@db.command()
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Compare the schema with what this version needs; exits 1 if it differs."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.database import without_password
    from migrations import runner

    url = database_url(settings_of(ctx, config))
    try:
        revision, head = runner.current(url), runner.head()
        differences = runner.differences(url) if revision == head else []
    except (SQLAlchemyError, OSError, CommandError) as error:
        fail(f"the database {without_password(url)} cannot be read: {error}")
    good = revision == head and not differences
    if as_json:
        print_json(
            {
                "url": without_password(url),
                "ok": good,
                "revision": revision,
                "head": head,
                "differences": differences,
            }
        )
    else:
        click.echo(f"{without_password(url)}: revision {revision or 'none'}, newest {head}")
        for difference in differences:
            click.echo(f"  {difference}")
    if not good and not as_json:
        fail("the schema differs; run `headgate db upgrade`")
    if not good:
        ctx.exit(1)
