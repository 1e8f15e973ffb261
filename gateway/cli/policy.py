"""`headgate policy check|explain|schema`: routing policies, without a running gateway."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from gateway.cli.common import (
    config_option,
    fail,
    json_option,
    moment_of,
    print_json,
    settings_of,
)
from gateway.cli.database import table
from gateway.cli.policy_files import find_policy, taught_router
from gateway.cli.policy_fit import fit
from gateway.cli.policy_replay import replay, simulate
from gateway.cli.policy_versions import history, rollback
from gateway.settings import Settings


@click.group()
def policy() -> None:
    """Check, explain, replay and fit routing policies."""


for command in (fit, history, replay, rollback, simulate):
    policy.add_command(command)


@policy.command()
@click.argument("policies", nargs=-1)
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, policies: tuple[str, ...], config: str | None, as_json: bool) -> None:
    """Validate policies: names or .toml files; without any, the configured one.

    Exit code 0: all can be used (there may be warnings). 1: one cannot. 2: there is no such file.
    """
    settings = settings_of(ctx, config)
    files = [find_policy(settings, name) for name in policies or (settings.routing.policy,)]
    found = [_check(file, settings) for file in files]
    if as_json:
        print_json({"policies": found})
    else:
        for entry in found:
            for problem in entry["problems"]:
                line = f":{problem['line']}" if problem["line"] else ""
                place = f"{problem['path']}: " if problem["path"] else ""
                click.echo(
                    f"{entry['file']}{line}: {problem['level']}: {place}{problem['message']}"
                )
            if entry["valid"]:
                click.echo(f"{entry['file']}: valid ({entry['ref']}, {entry['rules']} rules)")
    if not all(entry["valid"] for entry in found):
        sys.exit(1)


@policy.command()
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a policy file (always JSON)."""
    from policies.checker import schema as policy_schema

    print_json(policy_schema())


@policy.command()
@click.argument("prompt")
@click.option("--policy", "policy_name", help="A policy's name or .toml file; else as configured.")
@click.option("--model", default="auto", show_default=True, help="As in a request.")
@click.option("--team", default="anonymous", show_default=True)
@click.option("--user", help="As in a request's `user`.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="As in x-headgate-tags.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="As in a request.")
@click.option(
    "--budget-left", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="A fraction."
)
@click.option("--at", metavar="TIME", help="RFC 3339; else now.")
@config_option
@json_option
def explain(**options: Any) -> None:
    """One decision about PROMPT ("-" reads standard input); nothing is executed.

    Every backend counts as ready and idle; ask POST /route/explain for the state of now. Costs and
    seconds are learned from the ledger, where one is there.
    """
    prompt = options["prompt"]
    if prompt == "-":
        prompt = sys.stdin.read()
    settings = settings_of(click.get_current_context(), options["config"])
    story = asyncio.run(_explain(settings, prompt, options))
    if options["as_json"]:
        print_json(story)
    else:
        _print_story(story)


def _check(file: Path, settings: Settings) -> dict[str, Any]:
    import hashlib

    from msgspec.structs import asdict

    from gateway.routing.policy_problems import problems_of
    from policies.checker import parse
    from policies.problems import PolicyError, Problem

    data = file.read_bytes()
    rules: int | None = None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        problems = [Problem(level="error", path="", message=f"not UTF-8: {error}")]
    else:
        problems = problems_of(text, settings)
        try:
            rules = len(parse(text).rules)
        except PolicyError:
            rules = None
    return {
        "file": str(file),
        "ref": f"{file.stem}@{hashlib.sha256(data).hexdigest()[:8]}",
        "valid": not any(problem.level == "error" for problem in problems),
        "rules": rules,
        "problems": [asdict(problem) for problem in problems],
    }


async def _explain(settings: Settings, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    from msgspec.structs import replace

    from backends.wire import ChatCompletionRequest, Message
    from gateway.errors import GatewayError
    from policies.model import BudgetState

    name = options["policy_name"]
    if name is not None:
        file = find_policy(settings, name)
        folders = [str(file.parent), *settings.routing.policy_dirs]
        routing = replace(settings.routing, policy=file.stem, policy_dirs=folders)
        settings = replace(settings, routing=routing)
    router, taught = await taught_router(settings)
    request = ChatCompletionRequest(
        model=options["model"],
        messages=[Message(role="user", content=prompt)],
        max_tokens=options["max_tokens"],
        user=options["user"],
    )
    facts = router.facts(request, team=options["team"], tags=_tags(options["tags"]))
    try:
        story = await router.explain(
            facts,
            budget=BudgetState(left=options["budget_left"]),
            now=None if options["at"] is None else moment_of(options["at"], "--at"),
            text=prompt,
        )
        return {**story, "costs_from": "ledger" if taught else "guess"}
    except GatewayError as error:
        return fail(error.message)


def _tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(tags.values()):
        raise click.BadParameter("each tag is NAME=VALUE", param_hint="--tag")
    return tags


def _print_story(story: dict[str, Any]) -> None:
    features = story["features"]
    click.echo(f"policy    {story['policy']} → {story['rule']}")
    click.echo(
        f"features  task={features['task']} ({features['task_confidence']:.2f}) "
        f"difficulty={features['difficulty']:.2f} language={features['language']} "
        f"prompt≈{features['prompt_tokens']} tokens"
    )
    for rule in (*story["rules"], *story["targets"]):
        click.echo(f"  {'✓' if rule['matched'] else '·'} {rule['subject']}: {rule['why']}")
    for rule in story["not_reached"]:
        click.echo(f"  - {rule['subject']}: not reached; {rule['why']}")
    for what, moved in story["moved_by"].items():
        words = ", ".join(f"{word!r} {by:+.2f}" for word, by in moved["words"])
        about = what + (f" ({moved['label']})" if "label" in moved else "")
        click.echo(f"moved     {about}: {words or 'by no word'}")
    if story["costs_from"] == "guess":
        click.echo("costs     guessed: no ledger was found that says how long answers are")
    for name in ("denied", "max_tokens", "cache", "shadow"):
        if story[name] is not None:
            click.echo(f"{name:<9} {story[name]}")
    if story["refusal"] is not None:
        refusal = story["refusal"]
        click.echo(f"refused   {refusal['status']} {refusal['code']}: {refusal['message']}")
        return
    columns = ["try", "backend", "tier", "model", "quality", "cost", "latency", "answer tokens"]
    cells = []
    for place, candidate in enumerate(story["candidates"], start=1):
        quality = candidate["quality"]
        shown = "-" if quality is None else f"{quality:.2f}"
        tokens, seconds = candidate["answer_tokens"], candidate["latency_s"]
        cells.append(
            [
                *(str(place), candidate["backend"], candidate["tier"], candidate["model"], shown),
                f"${candidate['cost_usd']}",
                "-" if seconds is None else f"{seconds:.2f} s",
                "-" if tokens is None else f"{tokens['median']} ({tokens['low']}–{tokens['high']})",
            ]
        )
    table(columns, cells, right=columns[4:], spare=("model", "tier", "answer tokens"))
