"""`headgate plan`'s answers as tables and as a picture; not a command."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gateway.planner.curves import Curves


def show_capacity(answer: Mapping[str, Any]) -> None:
    """The plans, what techniques save, and what another load would cost."""
    _show_plans(answer)
    _show_replicas(answer["plans"])
    _show_techniques(answer["techniques"])
    show(
        "If it is not as said",
        ("if", "$/h", "machines"),
        [
            (
                row["if"],
                f"{row['usd_per_hour']:.2f}" if "usd_per_hour" in row else "-",
                row.get("machines", row.get("problem")),
            )
            for row in answer["sensitivity"]
        ],
    )


def _show_plans(answer: Mapping[str, Any]) -> None:
    work = answer["workload"]
    show(
        f"{answer['model']} ({_weights(answer)}) at "
        f"{work['requests_per_s']:.4g} requests/s of {work['mean_prompt_tokens']:,.0f} + "
        f"{work['mean_output_tokens']:,.0f} tokens on average",
        (
            "machines",
            "layout",
            "precision",
            "$/h",
            "$/month",
            "$/1M",
            "users each",
            "TTFT p99",
            "TPOT p99",
            "busy",
        ),
        [
            (
                f"{p['replicas']} × {p['devices_per_replica']} {p['hardware']}",
                p["layout"],
                p["precision"],
                f"{p['usd_per_hour']:.2f}",
                f"{p['usd_per_month']:,.0f}",
                f"{p['usd_per_million_tokens']:.4f}",
                p["users_per_replica"],
                _time(p["simulated"]["ttft_p99_s"]),
                _time(p["simulated"]["tpot_p99_s"]),
                f"{p['busy_share']:.0%}",
            )
            for p in answer["plans"]
        ],
    )


def _show_replicas(plans: Sequence[Mapping[str, Any]]) -> None:
    show(
        "One replica of each: room, roofline at the planned batch, and the queue before its seats",
        (
            "machines",
            "precision",
            "KV tokens",
            "batch, of at most",
            "tokens/s",
            "TPOT",
            "TTFT alone",
            "wait p99",
            "all-reduce",
        ),
        [
            (
                f"{p['devices_per_replica']} {p['hardware']}",
                p["precision"],
                f"{p['kv_room_tokens']:,}",
                f"{p['planned_batch']}, {p['max_batch']}",
                f"{p['roofline']['tokens_per_s']:,.0f}",
                _time(p["roofline"]["tpot_s"]),
                _time(p["roofline"]["ttft_alone_s"]),
                "never ends"
                if p["queueing"]["wait_p99_s"] is None
                else f"{p['queueing']['wait_p99_s']:.2g} s",
                f"{p['all_reduce_ms_per_step']:.3g} ms/step",
            )
            for p in plans
        ],
    )


def _show_techniques(rows: Sequence[Mapping[str, Any]]) -> None:
    show(
        "What each technique changes on the first, in steady state",
        ("technique", "$/1M tokens", "saves", "batch", "TPOT"),
        [
            (
                row["technique"],
                f"{row['usd_per_million_tokens']:.4f}" if "usd_per_million_tokens" in row else "-",
                f"{row['saves_share']:+.0%}" if "saves_share" in row else "-",
                row.get("batch", "-"),
                _time(row["tpot_ms"] / 1e3) if "tpot_ms" in row else "-",
            )
            for row in rows
        ],
    )
    for row in rows:
        if "problem" in row:
            click.echo(f"{row['technique']}: {row['problem']}")


def _weights(answer: Mapping[str, Any]) -> str:
    every, active = (_count(answer[name]) for name in ("params", "active_params"))
    return f"{every} weights" if every == active else f"{every} weights, {active} for a token"


def _count(number: int) -> str:
    return f"{number / 1e9:,.1f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def show_compare(answer: Mapping[str, Any]) -> None:
    """Quoted prices, under what they hold, and published speeds."""
    show(
        "1,000 prompt and 250 output tokens a request; $ per 1M tokens, prompt and output together",
        (
            "model",
            "precision",
            "machine",
            "$/h",
            "quoted",
            "batch 1",
            "full batch",
            "quoted holds if",
        ),
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
                row.get("holds_if", "-"),
            )
            for row in answer["prices"]
        ],
    )
    show(
        "Published speeds beside this planner's roofline at the same batch, output tokens/s",
        ("engine", "model", "machine", "batch", "tokens", "published", "planned", "ratio"),
        [
            (
                row["engine"],
                f"{row['model']} {row['precision']}",
                row["hardware"],
                row["batch"],
                f"{row['prompt_tokens']} + {row['output_tokens']}",
                f"{row['published_output_tokens_per_s']:,.0f}",
                row.get("problem") or f"{row['planned_output_tokens_per_s']:,.0f}",
                row.get("planned_over_published", "-"),
            )
            for row in answer["speeds"]
        ],
    )
    for source in dict.fromkeys(row["source"] for row in answer["speeds"]):
        click.echo(f"Published: {source}.")


def show_inputs(found: Mapping[str, Sequence[str]]) -> None:
    """What was measured and what assumed, a line each."""
    for kind in ("measured", "assumed"):
        lines = found[kind] or ["nothing"]
        click.echo(f"{kind.capitalize()}: " + lines[0])
        for line in lines[1:]:
            click.echo(" " * (len(kind) + 2) + line)


def show(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A table under a title."""
    from gateway.cli.database import table

    click.echo(title)
    table(list(columns), [[str(value) for value in row] for row in rows])


def draw_plans(plot: str, drawn: Sequence["Curves"], planned_requests_per_s: float) -> None:
    """Price by how full a replica's batch is, and latency by load, of each plan."""
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), dpi=150)
    for one in drawn:
        left.plot(*zip(*one.usd_by_batch, strict=True), marker="o", label=one.name)
        right.plot(*zip(*one.ttft_p99_by_load, strict=True), marker="o", label=one.name)
    left.set(xscale="log", yscale="log", xlabel="sequences at once",
             ylabel="$ per 1M tokens, always so full")  # fmt: skip
    right.set(yscale="log", xlabel="requests/s", ylabel="first token, p99, s")
    right.axvline(planned_requests_per_s, color="#6b7885", linestyle=":")
    for axis in (left.xaxis, left.yaxis, right.yaxis):  # 0.5, 1, 2, not powers of ten
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(plot)
    pyplot.close(figure)
    click.echo(f"Drawn: {plot}", err=True)
