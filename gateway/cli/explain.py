"""`headgate explain REQUEST_ID`: the decision as it was taken then."""

import os
from decimal import Decimal
from typing import Any

import click

from gateway.cli.common import (
    config_option,
    fail,
    gateway_url,
    get_json,
    json_option,
    print_json,
    settings_of,
    url_option,
)
from gateway.settings import Settings


@click.command()
@click.argument("request_id")
@config_option
@url_option
@json_option
@click.pass_context
def explain(
    ctx: click.Context, request_id: str, config: str | None, url: str | None, as_json: bool
) -> None:
    """The decision as it was taken then, every attempt, seconds × price step by step.

    REQUEST_ID is that of the header x-headgate-request-id, or the `id` of the answer (chatcmpl-…).
    Where no gateway runs, and none is named, out of the database.
    """
    settings = settings_of(ctx, config)
    named = url or os.environ.get("HEADGATE_URL")
    record = get_json(
        gateway_url(settings, url),
        f"/requests/{request_id}",
        if_away=None if named else lambda: _recorded(settings, request_id),
    )
    if as_json:
        print_json(record)
        return
    for line in _story(record):
        click.echo(line)


def _recorded(settings: Settings, request_id: str) -> dict[str, Any]:
    """As `GET /requests/{id}` would say it."""
    from gateway.cli.database import run_in_transaction
    from gateway.ledger.repository import find_settlement

    found = run_in_transaction(settings, lambda connection: find_settlement(connection, request_id))
    if found is None:
        fail(f"no gateway answers, and the database has no request {request_id!r}")
    return found.shown()


def _story(record: dict[str, Any]) -> list[str]:
    request, charges = record["request"], record["charges"]
    lines = [
        f"request   {request['request_id']}  {request['endpoint']}  model={request['model']}",
        f"caller    team={request['team']} key={request['key']} user={request['user'] or '-'}",
        f"outcome   {request['outcome']} ({_status(request)}) in {request['duration_ms']:.1f} ms",
    ]
    if request["task"]:  # else it was refused before anybody read it
        lines.append(
            f"features  task={request['task']} difficulty={_short(request['difficulty'])} "
            f"language={request['language']} prompt≈{request['prompt_tokens_estimate']} tokens"
        )
    if request["policy"]:
        ref = f"{request['policy']}@{request['policy_sha256'][:8]}"
        lines.append(f"policy    {ref} → rule {request['rule']}")
    for subject, matched, why in request["reasons"]:
        lines.append(f"  {'✓' if matched else '·'} {subject}: {why}")
    told = request["decided_on"] or {}
    for candidate in request["candidates"]:
        lines.append(f"candidate {_candidate(candidate, told)}")
    if told.get("second_look"):
        lines.append(f"second    the encoder was asked: {_LOOKED[told['second_look']]}")
    if told.get("explored"):
        lines.append(f"explored  chance took the place of rule {told['explored']}")
    lines.append(f"cache     {request['cache']}" + _similarity(request["similarity"]))
    for attempt in request["attempts"]:
        error = f" failed: {attempt['error']}" if attempt["error"] else " answered"
        verdict = _verdict(attempt.get("verdict"))
        lines.append(f"attempt   {attempt['backend']} {attempt['ms']:.1f} ms{error}{verdict}")
    for charge in charges:
        lines.append(f"charge {charge['seq']}  {_charge(charge)}")
    lines.append(f"cost      ${_usd(request['cost_nano_usd'])}")
    if request["saved_nano_usd"]:
        lines.append(
            f"saved     ${_usd(request['saved_nano_usd'])} (what the answer costs now; "
            f"it was made for {request['reuses'] or 'a request unknown'})"
        )
    return lines


def _status(request: dict[str, Any]) -> str:
    return " ".join(str(part) for part in (request["status"], request["error_code"]) if part)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_LOOKED = {
    "used": "qualities are the second head's",
    "late": "it was late, the first head decided",
    "failed": "it failed, the first head decided",
}


def _candidate(candidate: dict[str, Any], told: dict[str, Any]) -> str:
    """What was expected of a backend then, and how busy it was."""
    name, cost, seconds = candidate["backend"], candidate["cost_nano_usd"], candidate["latency_ms"]
    parts = [f"quality {candidate['quality']:.3f}"] if candidate["quality"] is not None else []
    parts += [f"${_usd(cost)} expected"] if cost is not None else []
    parts += [f"{seconds:.0f} ms expected"] if seconds is not None else []
    load = told.get("loads", {}).get(name)
    parts += [f"load {load:.2f}"] if load is not None else []
    parts += ["not ready"] if name in told.get("down", ()) else []
    return f"{name}: {', '.join(parts)}"


def _verdict(verdict: dict[str, Any] | None) -> str:
    """What became of a cascade's rung."""
    if verdict is None:
        return ""
    what = "accepted" if verdict["accepted"] else "rejected"
    p_good, gain, why = (verdict.get(name) for name in ("p_good", "gain", "why"))
    parts = [f"P(good) {p_good:.3f}"] if p_good is not None else []
    parts += [f"gain above {gain:+.3f}"] if gain is not None else []
    parts += [why] if why else []
    by = f" by {verdict['judge']}" if verdict["judge"] else ""
    return f", {what}{by}" + (f" ({', '.join(parts)})" if parts else "")


def _similarity(value: float | None) -> str:
    return "" if value is None else f" (similarity {value:.3f})"


def _charge(charge: dict[str, Any]) -> str:
    tokens = f"{charge['prompt_tokens']} in ({charge['cached_prompt_tokens']} cached)"
    tokens += f" + {charge['completion_tokens']} out"
    prices = charge["unit_prices"]
    if "usd_per_hour" in prices:
        parts = ", ".join(
            f"{name} {charge[f'{name}_ns'] / 1e6:.3f} ms"
            for name in ("prefill", "decode", "speculation", "recompute")
            if charge[f"{name}_ns"]
        )
        sum_ = f"{charge['machine_ns'] / 1e9:.6f} s × ${prices['usd_per_hour']}/h ÷ 3600"
        how = f"{parts}: {sum_}" if parts else sum_
    else:
        how = ", ".join(f"{name}={price}" for name, price in prices.items())
    where = charge["machine"] or "outside"
    return (
        f"{charge['kind']} by {charge['backend']} on {where}: {tokens}; {how}"
        f" = ${_usd(charge['cost_nano_usd'])}"
    )


def _usd(nano: int) -> str:
    return format(Decimal(nano).scaleb(-9), "f")
