"""`headgate policy simulate|replay`: prompts, or past traffic, through policies."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import (
    config_option,
    fail,
    json_option,
    log_to_stderr,
    moment_of,
    print_json,
    settings_of,
)
from gateway.cli.database import run_in_transaction, table
from gateway.cli.policy_files import find_policy, offline_router
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from gateway.routing.policy_book import LoadedPolicy


_policies = click.option(
    "--policy",
    "names",
    multiple=True,
    help="Name or .toml file; can be given again. Else the configured one.",
)


@click.command()
@click.option(
    "--since", metavar="TIME", help="RFC 3339 or a date, UTC; else all that the ledger holds."
)
@click.option("--until", metavar="TIME", help="Exclusive; else now.")
@_policies
@config_option
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    since: str | None,
    until: str | None,
    names: tuple[str, ...],
    config: str | None,
    as_json: bool,
) -> None:
    """Past requests through other policies, from what was recorded; nothing is asked again.

    Quality is a doubly robust estimate from feedback. Where the past left nothing to chance there
    is none; [routing] explore makes it possible.
    """
    settings = settings_of(ctx, config)
    begin = 0 if since is None else _us(since, "--since")
    end = round(time.time() * 1e6) if until is None else _us(until, "--until")
    loaded = [load(settings, name) for name in names or (settings.routing.policy,)]

    async def work(connection: "AsyncConnection") -> dict[str, Any]:
        from gateway.ledger.pricing import CostEstimator
        from gateway.routing.past import read_past
        from gateway.routing.replay import replay as run

        began = time.perf_counter()
        past = await read_past(connection, since_us=begin, until_us=end)
        router, registry = await offline_router(settings)
        read_s = time.perf_counter() - began
        report = run(past, loaded, registry.cards(), CostEstimator(settings), router.judges)
        return {"since": since, "until": until, "read_s": round(read_s, 4), **report}

    report = run_in_transaction(settings, work)
    if as_json:
        print_json(report)
        return
    actual = report["actual"]
    click.echo(
        f"{report['replayed']} requests replayed, {report['skipped']} without a recorded decision"
    )
    rows = [
        ["as it was", actual["cost_usd"], _shares(actual["shares"]), "-", "-", "-", _score(actual)]
    ]
    rows += [
        [
            one["policy"],
            one["cost_usd"],
            _shares(
                one["shares"], (one["denied"] + one["unanswered"]) / max(1, report["replayed"])
            ),
            _number(one["rungs"]),
            "-" if one["same_choice"] is None else f"{one['same_choice']:.1%}",
            _number(one["predicted_quality"]),
            _interval(one["quality"]),
        ]
        for one in report["policies"]
    ]
    columns = ["policy", "cost $", "shares", "answers", "same choice", "predicted quality",
               "quality"]  # fmt: skip
    table(columns, rows)
    for one in report["policies"]:
        _print_verdicts(one)
        if one["quality_why"]:
            click.echo(f"{one['policy']}: no quality figure: {one['quality_why']}")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@_policies
@config_option
@json_option
@click.pass_context
def simulate(
    ctx: click.Context, file: Path, names: tuple[str, ...], config: str | None, as_json: bool
) -> None:
    """A file of prompts through policies, side by side; nothing is asked.

    FILE: one prompt a line, or JSON Lines with `prompt` or `messages` (and `scores`, as outcomes),
    or .csv with a column `prompt`; .gz, too.
    Every backend counts as ready and idle; costs and seconds are learned from the ledger.
    """
    settings = settings_of(ctx, config)
    loaded = [load(settings, name) for name in names or (settings.routing.policy,)]
    from gateway.routing.simulate import PromptsError, read_prompts, simulate_all

    try:
        prompts = read_prompts(file)
    except PromptsError as error:
        fail(str(error), code=2)

    async def work(connection: "AsyncConnection") -> dict[str, Any]:
        router, registry = await offline_router(settings, connection)
        return simulate_all(prompts, loaded, router, registry.cards())

    report = run_in_transaction(settings, work)
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['prompts']} prompts")
    rows = [
        [
            one["policy"],
            one["cost_usd"],
            _number(one["predicted_quality"]),
            _number(one["measured_quality"]),
            _number(one["mean_latency_s"]),
            _number(one["rungs"]),
            _shares(one["shares"]),
            str(one["denied"] + one["unanswered"]),
        ]
        for one in report["policies"]
    ]
    columns = ["policy", "cost $", "predicted quality", "measured quality", "latency s", "answers",
               "shares", "refused"]  # fmt: skip
    table(columns, rows)
    for one in report["policies"]:
        _print_verdicts(one)


def _print_verdicts(one: dict[str, Any]) -> None:
    """Where the verdicts of a policy's cascades come from."""
    words = {
        "recorded": "by what their judges said",
        "calibrated": "by what their judges probably say",
        "question": "by what the question promises: their judges are not calibrated",
    }
    told = ", ".join(f"{count} {words[name]}" for name, count in one["verdicts"].items())
    if told:
        click.echo(f"{one['policy']}: cascades decided {told}")


def load(settings: Settings, name: str) -> "LoadedPolicy":
    """A policy by name or file; exits 2 if there is none, 1 if it is not valid."""
    from msgspec.structs import replace

    from gateway.errors import SettingsError
    from gateway.routing.policy_book import PolicyBook

    log_to_stderr()
    file = find_policy(settings, name)
    routing = replace(
        settings.routing,
        policy=file.stem,
        policy_dirs=[str(file.parent), *settings.routing.policy_dirs],
    )
    try:
        return PolicyBook(routing).get()
    except SettingsError as error:
        fail(str(error))


def _us(text: str, option: str) -> int:
    return round(moment_of(text, option).timestamp() * 1e6)


def _shares(shares: dict[str, float], nobody: float = 0.0) -> str:
    """Who answered which share; what nobody answered stands at the end."""
    named = {name: share for name, share in shares.items() if name != "-"}
    named["nobody"] = nobody + shares.get("-", 0.0)
    return ", ".join(f"{name} {share:.0%}" for name, share in named.items() if share) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _score(actual: dict[str, Any]) -> str:
    if actual["mean_score"] is None:
        return "-"
    return f"{actual['mean_score']:.3f} ({actual['opinions']} opinions)"


def _interval(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    return (
        f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}], "
        f"{found['effective_sample_size']:.0f} effective"
    )
