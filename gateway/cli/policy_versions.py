"""`headgate policy history|rollback`: versions of policies that decided, out of the database."""

from typing import TYPE_CHECKING

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table
from gateway.routing.policy_files import file_of, replace

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from gateway.routing.policy_history import Version


@click.command()
@click.argument("name", required=False)
@config_option
@json_option
@click.pass_context
def history(ctx: click.Context, name: str | None, config: str | None, as_json: bool) -> None:
    """Every version that ever decided, the newest first."""

    async def read(connection: "AsyncConnection") -> list["Version"]:
        from gateway.routing.policy_history import list_versions

        return await list_versions(connection, name)

    versions = run_in_transaction(settings_of(ctx, config), read)
    rows = [
        {
            "name": one.name,
            "sha256": one.sha256,
            "first_decided": moment(one.first_us / 1e6),
            "last_decided": None if one.last_us is None else moment(one.last_us / 1e6),
            "requests": one.requests,
        }
        for one in versions
    ]
    if as_json:
        print_json({"versions": rows})
        return
    columns = ["policy", "first decided", "last decided", "requests"]
    cells = [
        [
            f"{row['name']}@{str(row['sha256'])[:8]}",
            *(str(row[key] or "-") for key in ("first_decided", "last_decided", "requests")),
        ]
        for row in rows
    ]
    table(columns, cells, right={"requests"})


@click.command()
@click.argument("version", metavar="NAME@SHA")
@config_option
@json_option
@click.pass_context
def rollback(ctx: click.Context, version: str, config: str | None, as_json: bool) -> None:
    """Put an earlier version back into its file; gateways read it with the next request."""
    settings = settings_of(ctx, config)
    name, at, sha256 = version.partition("@")
    if not (name and at and sha256):
        raise click.BadParameter("NAME@SHA, as `policy history` prints it")
    try:
        target = file_of(name, settings.routing.policy_dirs)
    except ValueError as error:
        fail(str(error), code=2)

    async def read(connection: "AsyncConnection") -> tuple[str, str]:
        from gateway.routing.policy_history import version_text

        return await version_text(connection, name, sha256)

    full, text = run_in_transaction(settings, read, act=("policy.rollback", version))
    try:
        replace(target, text)
    except OSError as error:
        fail(f"{target}: {error.strerror}")
    if as_json:
        print_json({"name": name, "sha256": full, "path": str(target)})
    else:
        click.echo(f"{target}: {name}@{full[:8]}")
