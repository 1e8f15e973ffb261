"""`/policies`: the file in force with its check and its history, and a better one tried."""

from typing import Any

from sqlalchemy import select

from gateway.api.admin_policies import MOST_BYTES, RECENT, check_policy
from gateway.dashboard.visitor import Visit
from gateway.errors import NotFound
from gateway.ledger.tables import policy_versions
from gateway.routing.policy_book import LoadedPolicy, UnknownPolicy
from policies.problems import PolicyError

VERSIONS = 20


async def policies(visit: Visit) -> dict[str, Any]:
    """One policy, chosen by `name`; else the one that decides."""
    return await page_of(visit, visit.asked.get("name") or "")


async def page_of(visit: Visit, name: str, text: str | None = None, **tried: Any) -> dict[str, Any]:
    """The page of a policy, with a text in the editor that is not in force (yet)."""
    book = visit.parts.book
    active = visit.parts.overrides.effect.policy or book.get()
    try:
        loaded = book.get(name or active.name)
    except (UnknownPolicy, PolicyError) as error:
        raise NotFound(str(error)) from None
    wanted = visit.asked.get("version", "")
    versions = await _versions(visit, loaded.name)
    edited = text
    if edited is None:
        edited = next(
            (v["text"] for v in versions if wanted and v["sha256"].startswith(wanted)), None
        )
    shown = loaded.text if edited is None else edited
    return {
        "policy": loaded,
        "active": active,
        "pinned": visit.parts.overrides.effect.policy is not None,
        "names": book.names(),
        "text": shown,
        "draft": shown != loaded.text,
        "problems": check_policy(visit.pipeline, shown),
        "broken": book.problems(),
        "versions": versions,
        "rules": _rules(loaded),
        "recent": RECENT,
        "most_bytes": MOST_BYTES,
        "report": None,
        "may_activate": visit.caller.can("operations:write"),
        "charts": {},
        **tried,
    }


async def _versions(visit: Visit, name: str) -> list[dict[str, Any]]:
    """That ever decided, the newest first."""
    kept = policy_versions.c
    async with visit.parts.engine.connect() as connection:
        found = await connection.execute(
            select(kept.sha256, kept.first_us, kept.text)
            .where(kept.name == name)
            .order_by(kept.first_us.desc())
            .limit(VERSIONS)
        )
        return [dict(row._mapping) for row in found]


def _rules(loaded: LoadedPolicy) -> list[str]:
    return [*(rule.name for rule in loaded.policy.rules), "default"]
