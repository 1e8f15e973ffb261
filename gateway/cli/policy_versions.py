"""`headgate policy history|rollback`: versions of policies that decided, out of the database."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table

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
@click.pass_context
def rollback(ctx: click.Context, version: str, config: str | None) -> None:
    """Put an earlier version back into its file; gateways read it with the next request."""
    settings = settings_of(ctx, config)
    name, at, sha256 = version.partition("@")
    if not (name and at and sha256):
        raise click.BadParameter("NAME@SHA, as `policy history` prints it")
    folder = next(iter(settings.routing.policy_dirs), None)
    if folder is None:
        fail("routing.policy_dirs is empty: there is no folder to write to", code=2)

    async def read(connection: "AsyncConnection") -> tuple[str, str]:
        from gateway.routing.policy_history import version_text

        return await version_text(connection, name, sha256)

    full, text = run_in_transaction(settings, read, act=("policy.rollback", version))
    target = _file_of(name, settings.routing.policy_dirs) or Path(folder) / f"{name}.toml"
    _replace(target, text)
    click.echo(f"{target}: {name}@{full[:8]}")


def _file_of(name: str, folders: list[str]) -> Path | None:
    """Where the policy stands now, links followed: a rollback changes what they name."""
    for folder in folders:
        file = Path(folder) / f"{name}.toml"
        if file.exists():
            return file.resolve()
    return None


def _replace(target: Path, text: str) -> None:
    """Write so that a reader sees the old file or the new one, never a half."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, newline="") as file:
            file.write(text)
        Path(file.name).chmod(0o644)
        os.replace(file.name, target)  # noqa: PTH105 (both are names here)
    except OSError as error:
        fail(f"{target}: {error.strerror}")
