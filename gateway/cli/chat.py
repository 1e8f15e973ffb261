"""`headgate chat`: a terminal chat that shows who answered, from where and for how much."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from gateway.cli.common import (
    api_headers,
    config_option,
    fail,
    gateway_url,
    print_json,
    refusal,
    settings_of,
    url_option,
)


@click.command()
@click.argument("prompt", required=False)
@config_option
@url_option
@click.option("--model", default="auto", show_default=True, help="auto, a tier, a backend, …")
@click.option("--system", help="A system message.")
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs PROMPT.")
@click.pass_context
def chat(
    ctx: click.Context,
    prompt: str | None,
    config: str | None,
    url: str | None,
    model: str,
    system: str | None,
    temperature: float | None,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Chat with a running gateway; with PROMPT ("-" reads it), one answer and out.

    Each answer is followed by its route, cache verdict and cost; what a model thinks before it is
    shown on standard error. Ctrl-C ends an answer; an empty line or Ctrl-D leaves.
    """
    base = gateway_url(settings_of(ctx, config), url)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    options: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
    if temperature is not None:
        options["temperature"] = temperature
    if as_json and prompt is None:
        raise click.UsageError("--json needs PROMPT")
    if prompt is not None:
        text = sys.stdin.read() if prompt == "-" else prompt
        asked = [*messages, {"role": "user", "content": text}]
        try:
            answer, thoughts, route = _turn(base, {**options, "messages": asked}, silent=as_json)
        except _NoAnswer as error:
            fail(str(error))
        if as_json:
            thought = {"thoughts": thoughts} if thoughts else {}
            print_json({"answer": answer, **thought, "headgate": route})
        return
    _converse(base, messages, options)


def _converse(base: str, messages: list[dict[str, str]], options: dict[str, Any]) -> None:
    """Turn by turn; one that failed or was ended is as if it had not been asked."""
    while True:
        try:
            text = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not text:
            return
        asked = [*messages, {"role": "user", "content": text}]
        try:
            answer, *_ = _turn(base, {**options, "messages": asked})
        except _NoAnswer as error:
            click.echo(f"headgate: {error}", err=True)
        except KeyboardInterrupt:
            click.echo()
        else:
            messages = [*asked, {"role": "assistant", "content": answer}]


class _NoAnswer(Exception):
    """Why there is none."""


def _turn(
    base: str, body: dict[str, Any], *, silent: bool = False
) -> tuple[str, str, dict[str, Any]]:
    """Stream one answer to the terminal; return it, what was thought before, and its route."""
    answer: list[str] = []
    thoughts: list[str] = []
    route: dict[str, Any] = {}
    for event in _events(base, {**body, "stream": True}):
        if "error" in event:
            raise _NoAnswer(event["error"]["message"])
        route = event.get("headgate", route)
        for choice in event.get("choices", []):
            delta = choice.get("delta", {})
            piece = delta.get("content") or ""
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            if thought and not silent:
                click.secho(thought, fg="bright_black", nl=False, err=True)
            if piece and not silent:
                if any(thoughts) and not any(answer):
                    click.echo("\n", err=True)
                click.echo(piece, nl=False)
            answer.append(piece)
            thoughts.append(thought)
    if not silent:
        click.echo()
        if route:
            click.secho(_route_line(route), fg="bright_black")
    return "".join(answer), "".join(thoughts), route


def _events(base: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import httpx

    url = f"{base}/v1/chat/completions"
    try:
        with httpx.stream("POST", url, json=body, headers=api_headers(), timeout=600) as response:
            if response.status_code != 200:
                response.read()
                raise _NoAnswer(refusal(response) or f"{url}: {response.status_code}")
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])
    except httpx.HTTPError as error:
        raise _NoAnswer(
            f"no gateway answers at {base} ({error}); start one with `headgate serve`"
        ) from None


def _route_line(route: dict[str, Any]) -> str:
    parts = [
        f"{route.get('backend', '-')} by {route.get('policy', '-')}/{route.get('rule', '-')}",
        f"{route.get('task', '-')}, difficulty {route.get('difficulty', '-')}",
        f"cache {route.get('cache', '-')}",
        f"${route.get('cost_usd', '0')}",
    ]
    if route.get("saved_usd") not in (None, "0", "0.000000000"):
        parts.append(f"saved ${route['saved_usd']}")
    return "[" + " · ".join(parts) + f" · {route.get('request_id', '')}]"
