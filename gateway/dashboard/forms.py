"""What the pages' forms do: the admin paths' own functions, so with their checks and audit rows."""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from litestar.datastructures import FormMultiDict
from msgspec import Struct

from gateway.api.admin import clear_caches
from gateway.api.admin_alerts import try_channels
from gateway.api.admin_budgets import change_budget, drop_budget
from gateway.api.admin_keys import create_key, limit_key, revoke_key, rotate_key
from gateway.api.admin_overrides import lift_override, set_override
from gateway.api.admin_policies import PolicyText, activate_policy, check_policy, simulate_policy
from gateway.api.admin_teams import TeamChange, change_one
from gateway.dashboard.policies import page_of
from gateway.dashboard.visitor import Visit
from gateway.errors import InvalidRequest
from gateway.ledger.access import Permission
from gateway.ledger.budget_store import BudgetBody
from gateway.ledger.key_store import KeyBody
from gateway.ledger.money import parse_usd
from gateway.overrides.model import Wanted

Done = str | dict[str, Any]
"""The word of NOTES to come back with, or values for a page that is shown at once."""
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
NOTES: Mapping[str, str] = {
    "limited": "The limits are set.",
    "revoked": "The key is revoked: nobody gets in with it any more.",
    "budget": "The budget is set.",
    "nobody": "The budget is set. There is nobody and nothing of that name yet: it limits nothing.",
    "removed": "The budget is removed.",
    "team": "The team is changed.",
    "set": "The override is in force; it ends by itself.",
    "lifted": "The override is lifted.",
    "cleared": "The team's cached answers are forgotten.",
    "activated": "The policy is in force from the next request on.",
}


class Form(Struct, frozen=True, kw_only=True):
    """A form: where it is sent, what the key must be allowed, and where it stands."""

    path: str
    permission: Permission
    page: str
    """Name of the page."""
    act: Callable[[Visit, FormMultiDict], Awaitable[Done]]


def text(form: FormMultiDict, name: str) -> str:
    """A field that must be there. Raises InvalidRequest."""
    value = str(form.get(name) or "").strip()
    if not value:
        raise InvalidRequest(f"The field {name!r} is empty.", param=name)
    return value


def _some(form: FormMultiDict, name: str) -> str | None:
    return str(form.get(name) or "").strip() or None


def _number(form: FormMultiDict, name: str) -> float | None:
    value = _some(form, name)
    try:
        found = None if value is None else float(value)
    except ValueError:
        found = math.nan
    if found is not None and not math.isfinite(found):
        raise InvalidRequest(f"{name.replace('_', ' ')} {value!r} is no number.", param=name)
    return found


def _whole(form: FormMultiDict, name: str) -> int | None:
    """Refused rather than rounded: what is set is what was typed."""
    found = _number(form, name)
    if found is not None and not found.is_integer():
        words = f"{name.replace('_', ' ')} {_some(form, name)!r} is no whole number."
        raise InvalidRequest(words, param=name)
    return None if found is None else int(found)


def _dollars(form: FormMultiDict, name: str) -> str:
    value = text(form, name)
    try:
        parse_usd(value)
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from None
    return value


def _body(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    try:
        return msgspec.convert(
            {k: v for k, v in fields.items() if v is not None}, kind, strict=False
        )
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None


def _limits(form: FormMultiDict) -> dict[str, Any]:
    found = {name: _whole(form, name) for name in _LIMITS}
    limits: dict[str, Any] = {n: value for n, value in found.items() if value is not None}
    usd = _some(form, "usd_per_minute")
    return limits if usd is None else {**limits, "usd_per_minute": usd}


async def make_key(visit: Visit, form: FormMultiDict) -> Done:
    days = _number(form, "expires_in_days")
    fields = {
        "team": text(form, "team"),
        "name": _some(form, "name"),
        "scopes": [str(scope) for scope in form.getall("scopes", [])],
        "role": _some(form, "role") if "admin" in form.getall("scopes", []) else None,
        "user": _some(form, "user"),
        "expires_in_s": None if days is None else days * 86_400,
        "limits": _limits(form),
    }
    return {"made": await create_key(visit.pipeline, visit.request, _body(KeyBody, fields))}


async def rotate(visit: Visit, form: FormMultiDict) -> Done:
    overlap_s = 3600 * (_number(form, "overlap_h") or 0.0)
    made = await rotate_key(visit.pipeline, visit.request, text(form, "id"), overlap_s)
    return {"made": made}


async def revoke(visit: Visit, form: FormMultiDict) -> Done:
    await revoke_key(visit.pipeline, visit.request, text(form, "id"))
    return "revoked"


async def limit(visit: Visit, form: FormMultiDict) -> Done:
    await limit_key(visit.pipeline, visit.request, text(form, "id"), _limits(form))
    return "limited"


async def team(visit: Visit, form: FormMultiDict) -> Done:
    weight = _number(form, "weight")
    body = TeamChange(limits=_limits(form), weight=None if weight is None else int(weight))
    await change_one(visit.pipeline, visit.request, text(form, "team"), body)
    return "team"


async def set_budget(visit: Visit, form: FormMultiDict) -> Done:
    percent = _whole(form, "downgrade_percent")
    fields = {
        "scope": text(form, "scope"),
        "limit_usd": _dollars(form, "limit_usd"),
        "window": _some(form, "window"),
        "tz": _some(form, "tz"),
        "soft": form.get("soft") == "yes",
        "downgrade_percent": percent,
        "downgrade_policy": None if percent is None else _some(form, "downgrade_policy"),
    }
    made = await change_budget(visit.pipeline, visit.request, _body(BudgetBody, fields))
    return "nobody" if made["warning"] else "budget"


async def remove_budget(visit: Visit, form: FormMultiDict) -> Done:
    scope, window = text(form, "scope"), text(form, "window")
    await drop_budget(visit.pipeline, visit.request, scope, window)
    return "removed"


async def override(visit: Visit, form: FormMultiDict) -> Done:
    hours = _number(form, "for_h")
    wanted = Wanted(slot=text(form, "slot"), value=_some(form, "value") or "",
                    why=_some(form, "why") or "")  # fmt: skip
    if hours is not None:
        wanted.for_s = hours * 3600
    await set_override(visit.pipeline, visit.request, wanted)
    return "set"


async def lift(visit: Visit, form: FormMultiDict) -> Done:
    await lift_override(visit.pipeline, visit.request, text(form, "slot"))
    return "lifted"


async def clear(visit: Visit, form: FormMultiDict) -> Done:
    await clear_caches(visit.pipeline, visit.request, text(form, "team"))
    return "cleared"


async def try_policy(visit: Visit, form: FormMultiDict) -> Done:
    """Check the text; if it can be used, run recent traffic through it."""
    name, edited = text(form, "name"), _edited(form)
    errors = [p for p in check_policy(visit.pipeline, edited) if p["level"] == "error"]
    report = None if errors else await simulate_policy(visit.pipeline, name, edited)
    return await page_of(visit, name, edited, report=report)


async def activate(visit: Visit, form: FormMultiDict) -> Done:
    body = PolicyText(text=_edited(form), instead_of=_some(form, "instead_of"))
    await activate_policy(visit.pipeline, visit.request, text(form, "name"), body)
    return "activated"


async def test_alerts(visit: Visit, form: FormMultiDict) -> Done:
    results = await try_channels(visit.pipeline, visit.request, _some(form, "channel"))
    return {"tested": results}


def _edited(form: FormMultiDict) -> str:
    """Browsers send lines with CRLF."""
    return str(form.get("text") or "").replace("\r\n", "\n")


FORMS = (
    Form(path="/keys/create", permission="keys:write", page="budgets", act=make_key),
    Form(path="/keys/rotate", permission="keys:write", page="budgets", act=rotate),
    Form(path="/keys/revoke", permission="keys:write", page="budgets", act=revoke),
    Form(path="/keys/limit", permission="keys:write", page="budgets", act=limit),
    Form(path="/teams/change", permission="teams:write", page="budgets", act=team),
    Form(path="/budgets/set", permission="budgets:write", page="budgets", act=set_budget),
    Form(path="/budgets/remove", permission="budgets:write", page="budgets", act=remove_budget),
    Form(path="/backends/drain", permission="operations:write", page="backends", act=override),
    Form(path="/backends/undrain", permission="operations:write", page="backends", act=lift),
    Form(path="/routing/pin", permission="operations:write", page="routing", act=override),
    Form(path="/routing/lift", permission="operations:write", page="routing", act=lift),
    Form(path="/caches/off", permission="operations:write", page="caches", act=override),
    Form(path="/caches/on", permission="operations:write", page="caches", act=lift),
    Form(path="/caches/clear", permission="operations:write", page="caches", act=clear),
    Form(path="/alerts/test", permission="operations:write", page="alerts", act=test_alerts),
    Form(path="/policies/try", permission="operations:read", page="policies", act=try_policy),
    Form(path="/policies/activate", permission="operations:write", page="policies", act=activate),
)
