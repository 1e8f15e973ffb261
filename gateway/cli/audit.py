"""`headgate audit`: who administrated what."""

from typing import Any

import click

from gateway.cli.administration import administrate
from gateway.cli.common import config_option, json_option, print_json, settings_of, url_option
from gateway.cli.database import moment, run_in_transaction, table


@click.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--action", help="Only this one, such as keys.create.")
@click.option("--actor", help="Only this key's id, or cli:USER.")
@config_option
@url_option
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    limit: int,
    action: str | None,
    actor: str | None,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Acts of administration, the newest first: done, refused and failed ones."""
    settings = settings_of(ctx, config)
    asked: dict[str, Any] = {"limit": limit, "action": action, "actor": actor}

    def directly() -> dict[str, Any]:
        import msgspec

        from gateway.ledger.audit import list_acts

        found = run_in_transaction(settings, lambda connection: list_acts(connection, **asked))
        return {"acts": msgspec.to_builtins(found)}

    params = {name: value for name, value in asked.items() if value is not None}
    found = administrate(settings, "GET", "/admin/audit", directly, params=params, url=url)["acts"]
    if as_json:
        print_json([{**act, "at": moment(act["at"])} for act in found])
        return
    columns = ["actor", "action", "target", "outcome", "address"]
    table(
        ["at", *columns[:-1], "from"],
        [[moment(act["at"]) or "", *(act[name] for name in columns)] for act in found],
    )
