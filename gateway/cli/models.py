"""`headgate models`: what can be served, and how good it is."""

import gzip
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gateway.cli.common import (
    config_option,
    fail,
    json_option,
    print_json,
    run_child,
    settings_of,
)
from gateway.cli.database import table
from gateway.settings import BackendSettings, Settings

_VALUED = ("--suite", "--outputs", "--limit", "--threads", "--device", "--dtype")
"""Options of `models eval` after which a word is no model."""


@click.group()
def models() -> None:
    """What can be served, and how good it is."""


@models.command("list")
@config_option
@json_option
@click.pass_context
def list_models(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """The configured backends, their models, machines and measured quality."""
    settings = settings_of(ctx, config)
    rows = [
        {
            "name": backend.name,
            "kind": backend.kind,
            "tier": backend.tier or backend.name,
            "model": backend.model,
            "machine": machine.name if (machine := settings.machine(backend)) else None,
            "pass_rate": (quality(backend.model) or {}).get("pass_rate"),
        }
        for backend in settings.backends
    ]
    if as_json:
        print_json({"models": rows})
        return
    columns = ["name", "kind", "tier", "model", "machine", "pass rate"]
    rates = [row.pop("pass_rate") for row in rows]
    shown = [f"{100 * rate:.1f} %" if isinstance(rate, float) else "-" for rate in rates]
    cells = [[*(str(v or "-") for v in row.values()), shown[n]] for n, row in enumerate(rows)]
    table(columns, cells, right={"pass rate"})


@models.command()
@click.argument("model")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Architecture, size, revision and measured quality of a model folder or bundled:NAME."""
    command = [sys.executable, "-P", "-m", "backends.models.inspect", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(done.stderr.strip().splitlines()[-1] if done.stderr else "it failed")
    facts = json.loads(done.stdout)
    measured = quality(model)
    if as_json:
        print_json({**facts, "evaluation": measured})
        return
    for name, value in facts.items():
        click.echo(f"{name:24} {value}")
    if measured is not None:
        print_quality(measured)


@models.command()
@click.argument("wanted", metavar="[MODEL]...", nargs=-1)
@config_option
@json_option
@click.pass_context
def pull(ctx: click.Context, wanted: tuple[str, ...], config: str | None, as_json: bool) -> None:
    """Fetch models into this machine's cache: hf:owner/name[@revision] or a backend's name.

    Without any, all that the configuration has its engines serve.
    """
    engines = {b.name: b.model for b in settings_of(ctx, config).backends if b.kind == "engine"}
    targets = [engines.get(name, name) for name in wanted or engines]
    found = run_child("backends.models.pull", list(dict.fromkeys(targets)))
    if as_json:
        print_json({"models": found})
        return
    for one in found:
        click.echo(f"{one['model']}: {one['folder']} ({one['bytes'] / 1e6:,.1f} MB)")


@models.command(
    "eval",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--outcomes", type=click.Path(dir_okay=False, path_type=Path))
@config_option
@click.pass_context
def evaluate(
    ctx: click.Context, words: tuple[str, ...], outcomes: Path | None, config: str | None
) -> None:
    """Measure models on the frozen suites (see `headgate models eval --help`)."""
    settings = settings_of(ctx, config)
    named = {backend.name: backend for backend in settings.backends}
    command = [sys.executable, "-P", "-m", "backends.evaluation"]
    for before, word in zip(("", *words), words, strict=False):
        is_backend = word in named and before not in _VALUED
        command.append(as_target(named[word]) if is_backend else word)
    if outcomes is not None:
        command += ["--outcomes", str(outcomes)]
    code = subprocess.run(command, check=False).returncode
    if code == 0 and outcomes is not None:
        add_costs(outcomes, settings, named)
    sys.exit(code)


def add_costs(file: Path, settings: Settings, named: Mapping[str, BackendSettings]) -> None:
    """Write into every outcome what each answer cost: dollars by the configured prices.

    A model that is no configured backend counts as one on the machine "local".
    """
    packed = file.suffix == ".gz"
    data = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    rows = [json.loads(line) for line in data.splitlines()]
    for row in rows:
        row["cost_usd"] = {
            name: answer_cost(settings, named.get(name), row, name) for name in row["scores"]
        }
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    fresh = file.with_name(file.name + ".new")
    fresh.write_bytes(gzip.compress(lines, 9, mtime=0) if packed else lines)
    fresh.replace(file)


def answer_cost(
    settings: Settings, backend: BackendSettings | None, row: dict[str, Any], name: str
) -> float:
    """Dollars of one answer in an outcome row."""
    from backends.contract import EngineUsage, Usage
    from gateway.ledger.pricing import price_usage

    usage = Usage(
        prompt_tokens=row["prompt_tokens"][name],
        completion_tokens=row["completion_tokens"][name],
        headgate=EngineUsage(decode_ns=row["machine_ns"].get(name, 0)),
    )
    charge = price_usage(
        settings,
        backend or BackendSettings(name=name, model=name),
        usage,
        elapsed_s=0.0,
        in_flight=1,
        at=0.0,
        request_id="",
        seq=0,
    )
    return charge.cost_nano_usd / 1e9


def as_target(backend: BackendSettings) -> str:
    """A configured backend as `backends.evaluation.targets.Target`, in JSON."""
    if backend.kind == "encoder":
        fail(f"backend {backend.name!r} is an encoder; it answers no questions", code=2)
    target: dict[str, Any] = {"name": backend.name, "model": backend.model, "kind": backend.kind}
    if backend.kind == "engine" and backend.quantization not in (None, "none"):
        target["quantization"] = backend.quantization
    if backend.kind == "openai":
        target["base_url"] = backend.base_urls[0]
        target["api_key_env"] = backend.api_key_env
        target["api_key_file"] = backend.api_key_file
    return json.dumps(target)


def quality(model: str) -> dict[str, Any] | None:
    """What `models eval --cards` wrote into a model's folder; None if it was not measured."""
    from backends.bundled import UnknownBundledModelError, bundled_path

    try:
        name = model.removeprefix("bundled:")
        folder = Path(model) if name == model else bundled_path(name)
        found = json.loads((folder / "evaluation.json").read_bytes())
    except (OSError, ValueError, UnknownBundledModelError):
        return None
    return found if isinstance(found, dict) else None


def print_quality(measured: dict[str, Any]) -> None:
    """The quality table of one model."""

    def line(label: str, rate: dict[str, Any] | None) -> None:
        if rate:
            low, high = 100 * rate["low"], 100 * rate["high"]
            click.echo(f"  {label:30} {100 * rate['rate']:5.1f} % ({low:.1f}-{high:.1f})")

    low, high = measured["pass_rate_interval"]
    click.echo("quality (headgate models eval):")
    line("pass rate", {"rate": measured["pass_rate"], "low": low, "high": high})
    for difficulty, rate in measured["by_difficulty"].items():
        line(f"difficulty {difficulty}", rate)
    for part, rates in measured["by_part"].items():
        line(part, rates["pass_rate"])
    line("end of turn", measured["end_of_turn"])
    line("valid JSON", measured["json_valid"])
    for part, bits in (measured["bits_per_byte"] or {}).items():
        click.echo(f"  {'bits per byte, ' + part:30} {bits:5.4f}")
