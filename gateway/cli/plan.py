"""`headgate plan`: what to rent for a model, a load and a promise; on paper, nothing is started."""

from pathlib import Path
from typing import Any

import click

from gateway.cli.common import fail, json_option, print_json

_ASSUMED = (
    "Assumed: datasheet rates × {bandwidth:.0%} (memory) and × {compute:.0%} (compute), "
    "{overhead:g} ms a step, prices as dated in the catalogue. Calibrate with --measured."
)


class _DefaultGroup(click.Group):
    """`headgate plan 8B …` means `headgate plan capacity 8B …`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["capacity", *args]
        return super().resolve_command(ctx, args)


_hardware_file = click.option(
    "--hardware-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A catalogue whose entries are added to the shipped ones, or replace them.",
)


@click.group(cls=_DefaultGroup)
def plan() -> None:
    """Capacity and cost on paper: `headgate plan MODEL …`, compare, routing, hardware."""


def _load_options(command: Any) -> Any:
    for option in reversed(
        (
            click.option("--rate", type=float, help="Requests per second."),
            click.option("--prompt-tokens", type=int, default=1000, show_default=True),
            click.option("--output-tokens", type=int, default=250, show_default=True),
            click.option(
                "--trace",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Recorded lengths and gaps (Azure's CSV, Mooncake's JSON Lines).",
            ),
            click.option("--trace-scale", type=float, default=1.0, help="Of a trace's lengths."),
            click.option("--prefix-share", type=float, default=0.0, help="Of prompts: cached."),
            click.option("--ttft-p99", type=float, help="Promise: first token, seconds."),
            click.option("--tpot-p99", type=float, help="Promise: between tokens, seconds."),
            click.option("--precision", multiple=True, help="bf16, fp8, int8, int4; repeatable."),
            click.option("--hardware", multiple=True, help="Only these; repeatable."),
            click.option("--spot", is_flag=True, help="By spot prices, where there are some."),
            click.option(
                "--measured",
                multiple=True,
                metavar="HARDWARE=FILE",
                help="Step times out of `headgate bench engine --json`; repeatable.",
            ),
        )
    ):
        command = option(command)
    return command


@plan.command()
@click.argument("model")
@_load_options
@click.option("--keep", default=5, show_default=True, help="How many answers.")
@_hardware_file
@json_option
def capacity(
    model: str, keep: int, hardware_file: Path | None, as_json: bool, **asked: Any
) -> None:
    """The cheapest machines that serve MODEL (8B, a folder, bundled:NAME) at a load."""
    from gateway.planner.capacity import as_dict
    from gateway.planner.capacity import plan as search
    from gateway.planner.compare import savings
    from gateway.planner.errors import PlanError
    from gateway.planner.shapes import shape_of

    try:
        shape = shape_of(model)
        workload, slo = _workload(asked), _slo(asked)
        catalogue = _catalogue(hardware_file, asked)
        measured = _measured(asked["measured"], shape, asked["precision"])
        precisions = asked["precision"] or ("bf16", "int8", "int4")
        found = search(
            shape,
            catalogue.values(),
            workload,
            slo,
            precisions=precisions,
            measured=measured,
            keep=keep,
        )
        sensitive = _sensitivity(shape, catalogue, workload, slo, precisions, measured)
        techniques = savings(shape, found[0], slo)
    except PlanError as error:
        fail(str(error), code=2)
    answer = {
        "model": model,
        "params": shape.params,
        "workload": {
            "requests_per_s": workload.requests_per_s,
            "mean_prompt_tokens": round(workload.mean_prompt_tokens, 1),
            "mean_output_tokens": round(workload.mean_output_tokens, 1),
            "prefix_share": workload.prefix_share,
            "source": workload.source,
        },
        "slo": {"ttft_p99_s": slo.ttft_p99_s, "tpot_p99_s": slo.tpot_p99_s},
        "plans": [as_dict(one) for one in found],
        "sensitivity": sensitive,
        "techniques": techniques,
    }
    if as_json:
        print_json(answer)
    else:
        _show(answer)


@plan.command()
@_hardware_file
@json_option
def compare(hardware_file: Path | None, as_json: bool) -> None:
    """Common set-ups beside the prices quoted for them, and the load at which those hold."""
    from gateway.planner.compare import compare as rows_of
    from gateway.planner.errors import PlanError
    from gateway.planner.hardware import read_catalogue

    try:
        rows = rows_of(read_catalogue(hardware_file))
    except PlanError as error:
        fail(str(error), code=2)
    if as_json:
        print_json(rows)
        return
    _table(
        "1,000 prompt and 250 output tokens a request; $ per 1M tokens, prompt and output together",
        ("model", "precision", "machine", "$/h", "quoted", "batch 1", "full batch", "holds from"),
        [
            (
                row["model"],
                row["precision"],
                row["hardware"],
                row.get("usd_per_hour", "-"),
                row["published_usd_per_million_tokens"] or "-",
                row.get("usd_per_million_tokens_batch_1", row.get("problem", "-")),
                f"{row['usd_per_million_tokens_full']} (batch {row['full_batch']})"
                if "full_batch" in row
                else "-",
                _from_batch(row),
            )
            for row in rows
        ],
    )


@plan.command()
@click.option("--large", required=True, help="The model that answers now.")
@click.option("--small", required=True, help="The model that could answer some of it.")
@click.option("--share", required=True, type=float, help="Of requests that move, 0 to 1.")
@_load_options
@_hardware_file
@json_option
def routing(
    large: str, small: str, share: float, hardware_file: Path | None, as_json: bool, **asked: Any
) -> None:
    """What moving a share of the traffic to a smaller model saves, in whole machines."""
    from gateway.planner.capacity import as_dict
    from gateway.planner.capacity import plan as search
    from gateway.planner.errors import PlanError
    from gateway.planner.shapes import shape_of

    if not 0 < share <= 1:
        fail(f"--share is {share}; allowed: over 0, to 1", code=2)
    try:
        workload, slo = _workload(asked), _slo(asked)
        catalogue = _catalogue(hardware_file, asked).values()
        precisions = asked["precision"] or ("bf16", "int8", "int4")

        def cheapest(model: str, rate: float) -> Any:
            part = workload.scaled(rate=rate)
            shape = shape_of(model)
            return search(shape, catalogue, part, slo, precisions=precisions, keep=1)[0]

        before = cheapest(large, 1.0)
        parts = [cheapest(small, share)]
        if share < 1:
            parts.append(cheapest(large, 1 - share))
    except PlanError as error:
        fail(str(error), code=2)
    after_usd = sum(part.usd_per_hour for part in parts)
    saved = before.usd_per_hour - after_usd
    answer = {
        "before": as_dict(before),
        "after": [as_dict(part) for part in parts],
        "usd_per_hour_before": before.usd_per_hour,
        "usd_per_hour_after": after_usd,
        "saved_usd_per_hour": saved,
        "saved_share": saved / before.usd_per_hour if before.usd_per_hour else 0.0,
    }
    if as_json:
        print_json(answer)
        return
    click.echo(
        f"{large} alone: ${before.usd_per_hour:.2f}/h. With {share:.0%} on {small}: "
        f"${after_usd:.2f}/h, ${saved:.2f}/h less ({answer['saved_share']:.0%}).\n"
        "Machines come whole: try other shares. Quality is not on this page; see "
        "`headgate policy simulate`."
    )


@plan.command()
@_hardware_file
@json_option
def hardware(hardware_file: Path | None, as_json: bool) -> None:
    """The catalogue, with its dates."""
    from msgspec.structs import asdict

    from gateway.planner.errors import PlanError
    from gateway.planner.hardware import read_catalogue

    try:
        rows = [asdict(one) for one in read_catalogue(hardware_file).values()]
    except PlanError as error:
        fail(str(error), code=2)
    if as_json:
        print_json(rows)
        return
    _table(
        "One device; datasheet rates",
        ("name", "GiB", "GB/s", "bf16 TFLOP/s", "$/h", "spot", "as of"),
        [
            (
                row["name"],
                row["memory_gib"],
                row["bandwidth_gb_s"],
                row["tflops"].get("bf16", "-"),
                row["usd_per_hour"],
                row["spot_usd_per_hour"] or "-",
                row["as_of"],
            )
            for row in rows
        ],
    )


def _workload(asked: dict[str, Any]) -> Any:
    from gateway.planner.workload import from_trace, spread

    if asked["trace"] is not None:
        return from_trace(asked["trace"], asked["rate"], asked["trace_scale"])
    if asked["rate"] is None:
        fail("give --rate (requests per second) or --trace FILE", code=2)
    return spread(
        asked["rate"],
        asked["prompt_tokens"],
        asked["output_tokens"],
        prefix_share=asked["prefix_share"],
    )


def _slo(asked: dict[str, Any]) -> Any:
    from gateway.planner.errors import PlanError
    from gateway.planner.workload import Slo

    for name in ("ttft_p99", "tpot_p99"):
        if asked[name] is not None and asked[name] <= 0:
            raise PlanError(f"--{name.replace('_', '-')} is {asked[name]}; allowed: over 0")
    return Slo(ttft_p99_s=asked["ttft_p99"], tpot_p99_s=asked["tpot_p99"])


def _catalogue(path: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    from msgspec.structs import replace

    from gateway.planner.errors import PlanError
    from gateway.planner.hardware import read_catalogue

    found = read_catalogue(path)
    unknown = [name for name in asked["hardware"] if name not in found]
    if unknown:
        raise PlanError(f"no hardware {unknown[0]!r}; there are: {', '.join(found)}")
    if asked["hardware"]:
        found = {name: found[name] for name in asked["hardware"]}
    if asked["spot"]:
        found = {
            name: replace(one, usd_per_hour=one.spot_usd_per_hour or one.usd_per_hour)
            for name, one in found.items()
        }
    return found


def _measured(pairs: tuple[str, ...], shape: Any, precisions: tuple[str, ...]) -> dict[str, Any]:
    from gateway.planner.calibrate import calibrated
    from gateway.planner.errors import PlanError

    files: dict[str, list[Path]] = {}
    for pair in pairs:
        name, _, file = pair.partition("=")
        if not file:
            raise PlanError(f"--measured {pair!r}; write HARDWARE=FILE")
        files.setdefault(name, []).append(Path(file))
    precision = precisions[0] if len(precisions) == 1 else None
    if files and precision is None:
        raise PlanError("--measured needs one --precision: the one that was measured")
    return {name: calibrated(paths, shape, precision or "") for name, paths in files.items()}


def _sensitivity(
    shape: Any, catalogue: Any, workload: Any, slo: Any, precisions: Any, measured: Any
) -> list[dict[str, Any]]:
    from gateway.planner.capacity import plan as search
    from gateway.planner.errors import PlanError

    cases = {
        "load × 2": workload.scaled(rate=2.0),
        "load × 0.5": workload.scaled(rate=0.5),
        "answers twice as long": workload.scaled(output=2.0),
    }
    rows: list[dict[str, Any]] = []
    for name, changed in cases.items():
        try:
            best = search(
                shape,
                catalogue.values(),
                changed,
                slo,
                precisions=precisions,
                measured=measured,
                keep=1,
            )[0]
        except PlanError as error:
            rows.append({"if": name, "problem": str(error)})
            continue
        rows.append(
            {
                "if": name,
                "usd_per_hour": round(best.usd_per_hour, 4),
                "machines": f"{best.replicas} × {best.setup.devices} {best.setup.hardware.name} "
                f"({best.setup.precision})",
            }
        )
    return rows


def _show(answer: dict[str, Any]) -> None:
    from gateway.planner.steps import Roofline

    work = answer["workload"]
    _table(
        f"{answer['model']} ({answer['params'] / 1e9:.3g}B weights) at {work['requests_per_s']:g} "
        f"requests/s of {work['mean_prompt_tokens']:g} + {work['mean_output_tokens']:g} tokens",
        ("machines", "precision", "$/h", "$/month", "$/1M", "TTFT p99", "TPOT p99", "busy", "SLO"),
        [
            (
                f"{p['replicas']} × {p['devices_per_replica']} {p['hardware']}",
                p["precision"],
                f"{p['usd_per_hour']:.2f}",
                f"{p['usd_per_month']:,.0f}",
                f"{p['usd_per_million_tokens']:.4f}",
                f"{p['simulated']['ttft_p99_s']:.2f} s",
                f"{p['simulated']['tpot_p99_s'] * 1e3:.0f} ms",
                f"{p['busy_share']:.0%}",
                "holds" if p["holds_slo"] else "MISSED",
            )
            for p in answer["plans"]
        ],
    )
    _table(
        "What each technique changes on the first, in steady state",
        ("technique", "$/1M tokens", "batch", "TPOT"),
        [
            (
                row["technique"],
                row.get("usd_per_million_tokens", row.get("problem")),
                row.get("batch", "-"),
                f"{row['tpot_ms']} ms" if "tpot_ms" in row else "-",
            )
            for row in answer["techniques"]
        ],
    )
    _table(
        "If the load is another",
        ("if", "$/h", "machines"),
        [
            (row["if"], row.get("usd_per_hour", "-"), row.get("machines", row.get("problem")))
            for row in answer["sensitivity"]
        ],
    )
    fields = Roofline.__struct_fields__[-3:]
    bandwidth, compute, overhead = Roofline.__struct_defaults__[-3:]
    assert fields == ("bandwidth_share", "compute_share", "overhead_s")
    for source in dict.fromkeys(p["step_times"] for p in answer["plans"]):
        click.echo(
            _ASSUMED.format(bandwidth=bandwidth, compute=compute, overhead=overhead * 1e3)
            if source == "assumed"
            else f"Measured: step times from {source}."
        )


def _from_batch(row: dict[str, Any]) -> str:
    if "published_holds_from_batch" not in row:
        return "-"
    batch = row["published_holds_from_batch"]
    return "never" if batch is None else f"batch {batch}"


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from gateway.cli.database import table

    click.echo(title)
    table(list(columns), [[str(value) for value in row] for row in rows])
