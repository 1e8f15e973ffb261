"""`/requests`: the newest, live and filtered; `/request/{id}`: one, step by step."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import msgspec

from gateway.dashboard.periods import period_of
from gateway.dashboard.render import now as clock
from gateway.dashboard.request_rows import (
    FILTERS,
    PAGE_ROWS,
    SEARCHED,
    recent_requests,
    searched_until,
)
from gateway.dashboard.visitor import Visit
from gateway.errors import NotFound
from gateway.ledger.money import usd_text
from gateway.ledger.report_query import parse_query


async def requests(visit: Visit) -> dict[str, Any]:
    """The newest requests that fit."""
    wanted = {name: visit.asked.get(name, "") for name in FILTERS}
    if visit.only_team is not None:
        wanted["team"] = visit.only_team
    fits = {name: text for name, text in wanted.items() if text}
    before = visit.asked.get("before", "")
    before_us = int(before) if before.isdigit() and len(before) < 18 else None
    since, until = _period(visit)
    since_us = 0 if since is None else round(since.timestamp() * 1e6)
    if until is not None:
        until_us = round(until.timestamp() * 1e6)
        before_us = until_us if before_us is None else min(before_us, until_us)
    async with visit.parts.engine.connect() as connection:
        rows = await recent_requests(connection, fits, since_us=since_us, before_us=before_us)
        end_us = None
        if fits and len(rows) < PAGE_ROWS:
            end_us = await searched_until(connection, since_us=since_us, before_us=before_us)
    older = rows[-1]["started_us"] if len(rows) == PAGE_ROWS else end_us
    when = {"since": _local(since, visit.tz), "until": _local(until, visit.tz)}
    kept = urlencode(
        {
            **{k: v for k, v in fits.items() if k != "team" or not visit.only_team},
            **{k: v for k, v in when.items() if v},
        }
    )
    return {
        "requests": rows,
        "wanted": wanted,
        "only_team": visit.only_team,
        "when": when,
        "older": None if older is None else f"?{kept}&before={older}".replace("?&", "?"),
        "follows": before_us is None
        and not since_us
        and visit.only_team is None
        and not wanted["user"],
        "searched": SEARCHED if end_us is not None else None,
        "reset": f"?{kept}" if before else None,
    }


def _period(visit: Visit) -> tuple[datetime | None, datetime | None]:
    """(since, until) as they were typed, or as a link from the costs says them."""
    now = clock()
    if visit.asked.get("period") or visit.asked.get("since"):
        moments = period_of(visit.asked, visit.tz, now).moments
    else:
        moments = {"until": visit.asked.get("until") or None}
    query = parse_query(tz=visit.tz, now=now, **moments)
    return query.since, query.until if moments.get("until") else None


def _local(moment: datetime | None, tz: str) -> str:
    """As a field of date and time holds it, in the reader's zone; empty for none."""
    if moment is None:
        return ""
    return moment.astimezone(ZoneInfo(tz)).replace(tzinfo=None).isoformat(timespec="minutes")


async def request(visit: Visit) -> dict[str, Any]:
    """One request: decision, attempts, tokens, charges step by step."""
    request_id = visit.request.path_params["request_id"].removeprefix("/")
    found = await visit.parts.ledger.find(request_id)
    own = visit.only_team is None or (found is not None and found.request.team == visit.only_team)
    if found is None or not own:
        raise NotFound(f"There is no request {request_id!r}.")
    row = msgspec.to_builtins(found.request)
    charges = [
        {**msgspec.to_builtins(charge), "steps": _steps(msgspec.to_builtins(charge)),
         "cost_usd": usd_text(charge.cost_nano_usd)}
        for charge in found.charges
    ]  # fmt: skip
    return {
        "row": row,
        "at": datetime.fromtimestamp(found.request.started_at, ZoneInfo("UTC")).isoformat(),
        "charges": charges,
        "told": row["decided_on"] or {},
        "cost_usd": usd_text(found.request.cost_nano_usd),
        "saved_usd": usd_text(found.request.saved_nano_usd),
        "usd_of": usd_text,
    }


def _steps(charge: dict[str, Any]) -> str:
    """Seconds × price, or tokens × price, as it was computed."""
    prices = charge["unit_prices"]
    if "usd_per_hour" in prices:
        used = Decimal(charge["machine_ns"]).scaleb(-9).normalize()
        parts = ", ".join(
            f"{name} {charge[f'{name}_ns'] / 1e6:.3f} ms"
            for name in ("prefill", "decode", "speculation", "recompute")
            if charge[f"{name}_ns"]
        )
        sum_ = f"{used:f} s × ${prices['usd_per_hour']}/h ÷ 3600"
        return f"{parts}: {sum_}" if parts else sum_
    return ", ".join(
        f"{name.replace('_usd_per_mtok', '')} ${price}/1M" for name, price in prices.items()
    )
