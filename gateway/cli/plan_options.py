"""What `headgate plan` asks: options, and the workload, promise and machines that they say."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import fail, settings_of
from gateway.cli.database import run_on_engine

if TYPE_CHECKING:
    from gateway.planner.hardware import Hardware
    from gateway.planner.setups import Technique
    from gateway.planner.shapes import ModelShape
    from gateway.planner.steps import Fitted
    from gateway.planner.workload import Slo, Workload

LEDGER = "ledger"
"""Instead of a file: step times out of what requests were charged."""

catalogue_option: Callable[[Any], Any] = click.option(
    "--catalogue",
    "--hardware-file",
    "catalogue",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML whose entries are added to the shipped ones, or replace them.",
)
plot_option: Callable[[Any], Any] = click.option("--plot", metavar="FILE.png", help="Also draw it.")
_LOAD: tuple[Callable[[Any], Any], ...] = (
    click.option("--rate", type=float, help="Requests per second."),
    click.option("--prompt-tokens", type=int, default=1000, show_default=True, help="On average."),
    click.option("--output-tokens", type=int, default=250, show_default=True, help="On average."),
    click.option(
        "--lengths",
        type=click.Choice(["spread", "fixed"]),
        default="spread",
        show_default=True,
        help="Around those averages: log-normal as chats are, or all the same.",
    ),
    click.option(
        "--trace",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Recorded lengths and gaps (Azure's CSV, Mooncake's JSON Lines).",
    ),
    click.option("--trace-scale", type=float, default=1.0, help="Of a trace's lengths."),
    click.option("--since", metavar="T", help="The ledger's own traffic from then on."),
    click.option("--until", metavar="T", help="Of the ledger's traffic; default: now."),
    click.option("--backend", help="Of the ledger's traffic: what this backend answered."),
    click.option("--prefix-share", type=float, help="Of prompts: in the prefix cache."),
    click.option("--ttft-p99", type=float, help="Promise: first token, seconds."),
    click.option("--tpot-p99", type=float, help="Promise: between tokens, seconds."),
    click.option("--precision", multiple=True, help="bf16, fp8, int8, int4; repeatable."),
    click.option("--kv-bits", type=click.Choice(["16", "8"]), help="Of the cache's values."),
    click.option(
        "--speculation",
        metavar="TOKENS[,TIMES]",
        help="Tokens that a step gains on average, and how much longer it takes: 2.2,1.25.",
    ),
    click.option("--max-batch", type=int, help="Most sequences at once; 1: no batching."),
    click.option("--hardware", multiple=True, help="Only these; repeatable."),
    click.option("--spot", is_flag=True, help="By spot prices, where there are some."),
    click.option(
        "--measured",
        multiple=True,
        metavar="HARDWARE=FILE",
        help="Step times out of `headgate bench engine|serve --json`, or HARDWARE=ledger; "
        "repeatable.",
    ),
)


def load_options(command: Any) -> Any:
    """All that say what is to be served, how well, and on what."""
    for option in reversed(_LOAD):
        command = option(command)
    return command


def workload_of(ctx: click.Context, asked: dict[str, Any]) -> "Workload":
    """The load that was asked for: of the ledger, a trace, or numbers."""
    from msgspec.structs import replace

    from gateway.planner.workload import checked, fixed, from_trace, spread

    if asked["since"] is not None:
        found = _from_ledger(ctx, asked)
    elif asked["trace"] is not None:
        found = from_trace(asked["trace"], asked["rate"], asked["trace_scale"])
    elif asked["rate"] is None:
        fail("give --rate (requests per second), --since (the ledger's traffic) or --trace FILE",
             code=2)  # fmt: skip
    else:
        made = fixed if asked["lengths"] == "fixed" else spread
        found = made(asked["rate"], asked["prompt_tokens"], asked["output_tokens"])
    if asked["prefix_share"] is not None:
        found = checked(replace(found, prefix_share=asked["prefix_share"]))
    return found


def _from_ledger(ctx: click.Context, asked: dict[str, Any]) -> "Workload":
    from msgspec.structs import replace

    from gateway.planner.past import traffic
    from gateway.planner.workload import checked

    since_us, until_us = _period(asked)

    async def read(engine: Any) -> "Workload":
        async with engine.connect() as connection:
            return await traffic(connection, since_us, until_us, asked["backend"])

    found: Workload = run_on_engine(settings_of(ctx), read)
    if asked["rate"] is not None:
        found = checked(replace(found, requests_per_s=asked["rate"]))
    return found


def _period(asked: dict[str, Any]) -> tuple[int, int]:
    from gateway.ledger.report_query import ReportError, parse_query

    try:
        query = parse_query(since=asked["since"], until=asked["until"], now=datetime.now(UTC))
    except ReportError as error:
        fail(str(error), code=2)
    return query.since_us, query.until_us


def slo_of(asked: dict[str, Any]) -> "Slo":
    """What is promised."""
    from gateway.planner.errors import PlanError
    from gateway.planner.workload import Slo

    for name in ("ttft_p99", "tpot_p99"):
        if asked[name] is not None and not asked[name] > 0:
            raise PlanError(f"--{name.replace('_', '-')} is {asked[name]}; allowed: over 0")
    return Slo(ttft_p99_s=asked["ttft_p99"], tpot_p99_s=asked["tpot_p99"])


def technique_of(asked: dict[str, Any]) -> "Technique":
    """What the engine does to be faster."""
    from gateway.planner.errors import PlanError
    from gateway.planner.setups import MAX_BATCH, Technique

    tokens, times = 1.0, 1.0
    if asked["speculation"] is not None:
        try:
            first, _, second = asked["speculation"].partition(",")
            tokens, times = float(first), float(second or 1.25)
        except ValueError:
            tokens = 0.0
        if tokens < 1 or times < 1:
            raise PlanError(
                f"--speculation {asked['speculation']!r}; write tokens a step and times its "
                "length, both 1 or more: 2.2,1.25"
            )
    most = asked["max_batch"] if asked["max_batch"] is not None else MAX_BATCH
    if most < 1:
        raise PlanError(f"--max-batch is {most}; allowed: 1 or more")
    return Technique(
        kv_bytes=int(asked["kv_bits"]) / 8 if asked["kv_bits"] else None,
        tokens_per_step=tokens,
        step_factor=times,
        max_batch=most,
    )


def catalogue_of(path: Path | None, asked: dict[str, Any]) -> dict[str, "Hardware"]:
    """The machines to choose among, at the prices to count."""
    from msgspec.structs import replace

    from gateway.planner.hardware import pick, read_catalogue

    found = read_catalogue(path)
    if asked["hardware"]:
        found = {one.name: one for one in (pick(found, name) for name in asked["hardware"])}
    if asked["spot"]:
        found = {
            name: replace(
                one, usd_per_hour=one.spot_usd_per_hour or one.usd_per_hour, usd_per_month=None
            )
            for name, one in found.items()
        }
    return found


def measured_of(
    ctx: click.Context,
    asked: dict[str, Any],
    shape: "ModelShape",
    catalogue: dict[str, "Hardware"],
) -> dict[str, "Fitted"]:
    """Step models by hardware, out of files or the ledger."""
    from gateway.planner.calibrate import measured_work
    from gateway.planner.errors import PlanError
    from gateway.planner.hardware import pick
    from gateway.planner.steps import fit

    sources: dict[str, list[str]] = {}
    for pair in asked["measured"]:
        name, _, file = pair.partition("=")
        if not file:
            raise PlanError(f"--measured {pair!r}; write HARDWARE=FILE or HARDWARE=ledger")
        sources.setdefault(pick(catalogue, name).name, []).append(file)
    precisions = asked["precision"]
    if sources and len(precisions) != 1:
        raise PlanError("--measured needs one --precision: the one that was measured")
    found = {}
    for name, files in sources.items():
        rows = measured_work([Path(file) for file in files if file != LEDGER])
        if LEDGER in files:
            rows += _charged(ctx, asked)
        source = ", ".join(Path(file).name for file in files)
        found[name] = fit(rows, shape, precisions[0], source, catalogue[name].kind)
    return found


def _charged(ctx: click.Context, asked: dict[str, Any]) -> list[Any]:
    from gateway.planner.past import charged_work

    settings = settings_of(ctx)
    since_us, until_us = _period(asked)

    async def read(engine: Any) -> list[Any]:
        async with engine.connect() as connection:
            return await charged_work(connection, since_us, until_us, settings.backends)

    return run_on_engine(settings, read)
