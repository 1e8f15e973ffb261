"""`headgate chat`: a terminal chat that shows who answered, from where and for how much."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from gateway.cli.common import api_headers, config_option, fail, gateway_url, settings_of


@click.command()
@click.argument("prompt", required=False)
@config_option
@click.option("--url", help="Of the gateway; else $HEADGATE_URL, else from the configuration.")
@click.option("--model", default="auto", show_default=True, help="auto, a tier, a backend, …")
@click.option("--system", help="A system message.")
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
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
) -> None:
    """Chat with a running gateway; with PROMPT, one answer and out.

    Each answer is followed by its route, cache verdict and cost. An empty line or Ctrl-D leaves.
    """
    base = gateway_url(settings_of(ctx, config), url)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    options: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
    if temperature is not None:
        options["temperature"] = temperature
    if prompt is not None:
        text = sys.stdin.read() if prompt == "-" else prompt
        _turn(base, [*messages, {"role": "user", "content": text}], options)
        return
    while True:
        try:
            text = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not text:
            return
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": _turn(base, messages, options)})


def _turn(base: str, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Stream one answer to the terminal and return it."""
    answer: list[str] = []
    route: dict[str, Any] = {}
    for event in _events(base, {**options, "messages": messages, "stream": True}):
        if "error" in event:
            click.echo()
            fail(event["error"]["message"])
        route = event.get("headgate", route)
        for choice in event.get("choices", []):
            piece = choice.get("delta", {}).get("content") or ""
            answer.append(piece)
            click.echo(piece, nl=False)
    click.echo()
    if route:
        click.secho(_route_line(route), fg="bright_black")
    return "".join(answer)


def _events(base: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import httpx

    url = f"{base}/v1/chat/completions"
    try:
        with httpx.stream("POST", url, json=body, headers=api_headers(), timeout=600) as response:
            if response.status_code != 200:
                response.read()
                try:
                    fail(response.json()["error"]["message"])
                except (ValueError, KeyError, TypeError):
                    fail(f"{url}: {response.status_code}: {response.text[:200]}")
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])
    except httpx.HTTPError as error:
        fail(f"no gateway answers at {base} ({error}); start one with `headgate serve`")


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
