"""`headgate policy fit`: a classifier head out of outcomes, fitted in a child process."""

import tempfile
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, run_child, settings_of
from gateway.cli.database import run_in_transaction, table
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@click.command()
@click.option(
    "--outcomes",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="JSON Lines, or .csv with columns prompt and one of scores per backend.",
)
@click.option(
    "--practice",
    multiple=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="More outcomes to fit on, which no figure counts; may be given more than once.",
)
@click.option("--feedback", is_flag=True, help="From the ledger's feedback, instead of a file.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where the head goes; name it as [routing] head.",
)
@click.option(
    "--head",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Whose tasks and difficulty to keep; else the configured head.",
)
@click.option(
    "--second-stage/--no-second-stage",
    default=True,
    help="Also the head that reads the encoder's vectors, for a second look.",
)
@config_option
@json_option
@click.pass_context
def fit(
    ctx: click.Context,
    outcomes: str | None,
    practice: tuple[str, ...],
    feedback: bool,
    out: str,
    head: str | None,
    second_stage: bool,
    config: str | None,
    as_json: bool,
) -> None:
    """Fit a classifier head on outcomes, cross-validated; writes its card, curves, predictions.

    Runs as a child process: fitting needs libraries that the gateway does not load.
    """
    if feedback == (outcomes is not None):
        raise click.UsageError("exactly one of --outcomes FILE and --feedback")
    settings = settings_of(ctx, config)
    base = head or settings.routing.head
    arguments = ["--out", out, *(["--head", base] if base else [])]
    if outcomes is not None:
        arguments += ["--encoder", _encoder(settings)] if second_stage else []
        arguments += [part for file in practice for part in ("--practice", file)]
        card = run_child("gateway.learning", [*arguments, "--outcomes", outcomes])
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            file.write(_opinions(settings))
            file.flush()
            card = run_child("gateway.learning", [*arguments, "--opinions", file.name])
    if as_json:
        print_json(card)
    else:
        _print_card(card, out)


def _encoder(settings: Settings) -> str:
    """The model of the semantic cache's encoder, which takes the second looks, too."""
    name = settings.cache.semantic.encoder
    return next((backend.model for backend in settings.backends if backend.name == name), name)


def _opinions(settings: Settings) -> str:
    """The ledger's feedback as JSON Lines."""
    import msgspec

    async def read(connection: "AsyncConnection") -> str:
        from gateway.ledger.feedback import opinions

        found = await opinions(connection)
        return "".join(msgspec.json.encode(one).decode() + "\n" for one in found)

    return run_in_transaction(settings, read)


def _print_card(card: dict[str, Any], out: str) -> None:
    alike = f", {card['groups']} of them unlike each other" if "groups" in card else ""
    click.echo(f"{out}: head {card['version']} from {card['rows']} rows{alike}")
    columns = ["backend", "rows", "pass rate", "AUC", "ECE"]
    rows = []
    for name, entry in card["quality"].items():
        area = "-" if entry["auc"] is None else f"{entry['auc']:.3f}"
        rate, error = f"{entry['pass_rate']:.3f}", f"{entry['ece']:.3f}"
        rows.append([name, str(entry["rows"]), rate, area, error])
    table(columns, rows, right=columns[1:])
    if card.get("too_few"):
        few = ", ".join(f"{name} {count}" for name, count in card["too_few"].items())
        click.echo(f"too few opinions, predicted as before: {few}; {card['least']} are needed")
    if card["apgr"] is None:
        click.echo("no prompt was answered by all backends: nothing says what a choice gains")
        return
    keys = ("apgr", "cpt50", "cpt80", "area")
    rows = []
    for name in ("router", "length", "shuffled", "oracle"):
        figures = card if name == "router" else card["baselines"][name]
        rows.append([name, *(_interval(figures[key]) for key in keys)])
    second = card.get("second_stage")
    if second is not None and second["area"] is not None:
        rows.append(["second look", *(_interval(second[key]["second"]) for key in keys)])
    table(["router", "APGR", "CPT50", "CPT80", "area"], rows)
    click.echo(_beside_length(card["apgr_above_length"]))
    gate = card["sensitivity"]
    click.echo(f"words put around a prompt move it: {'little' if gate['passed'] else 'TOO MUCH'}")
    if second is not None and second["area"] is not None:
        gain = _interval(second["area"]["gain"])
        use = "used where it may pay" if second["helps"] else "used only where a policy asks for it"
        click.echo(f"a second look adds {gain} to the area: {use}")
    cascade = card.get("cascade")
    if cascade is not None:
        area = cascade["area"]
        click.echo(
            f"judging answers, too: area {_interval(area['question_and_answer'])}, by the question "
            f"alone {_interval(area['question'])}, on {cascade['rows']} rows; settings in card.json"
        )
        marked = cascade["marked"]
        if marked is not None:
            click.echo(
                f"  on the {marked['rows']} of them that the file marks as test, without those "
                f"nearly the same: {_interval(marked['area']['question_and_answer'])}, "
                f"{_interval(marked['area']['question'])}"
            )


def _beside_length(above: dict[str, float | None]) -> str:
    """Whether the head earns its keep."""
    if above["low"] is not None and above["low"] > 0:
        return f"APGR above that of prompt length by {_interval(above)}"
    return (
        f"APGR above that of prompt length by {_interval(above)}: cannot be told from it, so do "
        "not use this head; more rows may tell"
    )


def _interval(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
