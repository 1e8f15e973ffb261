"""A month as FOCUS CSV: usage by day, corrections of earlier months, and what the bill has beside.

Source: FinOps Open Cost and Usage Specification 1.0, focus.finops.org. What it asks of a column
holds: quantities and their units stand with usage alone, `ChargeClass` names corrections of earlier
billing periods alone, every line has a provider, and BilledCost sums to the month's bill.
"""

import csv
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Final

import msgspec
from sqlalchemy import select

from gateway.ledger import subjects
from gateway.ledger.csv_text import safe_cell
from gateway.ledger.money import parse_usd, usd_text
from gateway.ledger.month_end import Bill, bounds
from gateway.ledger.month_end import bill as bill_of
from gateway.ledger.reports import costs_report
from gateway.ledger.rows import to_us
from gateway.ledger.tables import charges, requests
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

COLUMNS = (
    *("BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"),
    *("ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"),
    *("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "PricingCategory"),
    *("ProviderName", "PublisherName", "InvoiceIssuerName"),
    *("ServiceCategory", "ServiceName", "SkuId", "SubAccountId", "SubAccountName"),
    *("ResourceId", "ResourceName", "ResourceType", "RegionId", "Tags"),
)
_KEYS: Final = ("day", "team", "key", "backend", "machine", "machine_type", "kind")
_OURSELVES: Final = "Headgate"
_CATEGORIES: Final = {
    "discount": "Credit",
    "difference": "Adjustment",
    "unattributed": "Adjustment",
}
Group = tuple[str | None, ...]
"""By _KEYS."""


class Sum(msgspec.Struct):
    """What lines are made of."""

    requests: int = 0
    tokens: int = 0
    nano_usd: int = 0


async def focus_csv(engine: "AsyncEngine", settings: Settings, file: IO[str], month: str) -> int:
    """Write a month; how many lines."""
    begin, end = bounds(month)
    usage = await costs_report(
        engine, settings, group_by=_KEYS, since=begin.isoformat(), until=end.isoformat()
    )
    corrected = await _corrections(engine, begin, end)
    lines = []
    for row in usage["rows"]:
        group = tuple(row[key] for key in _KEYS)
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        whole = Sum(row["requests"], tokens, parse_usd(row["cost_usd"]))
        earlier = corrected.get(group)
        if earlier is not None:
            whole.requests = max(whole.requests - earlier.requests, 0)
            whole.tokens -= earlier.tokens
            whole.nano_usd -= earlier.nano_usd
            lines.append(_usage(group, earlier, corrects=True))
        if whole.requests or whole.nano_usd:
            lines.append(_usage(group, whole))
    lines += _beside(await bill_of(engine, settings, month), begin, end)
    common = {
        "BillingAccountId": "headgate",
        "BillingAccountName": _OURSELVES,
        "BillingCurrency": "USD",
        "BillingPeriodStart": _time(begin),
        "BillingPeriodEnd": _time(end),
        "PublisherName": _OURSELVES,
        "ServiceCategory": "AI and Machine Learning",
    }
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells({**common, **line}) for line in lines)
    return len(lines)


def _cells(line: Mapping[str, str]) -> Iterator[str]:
    costs = dict.fromkeys(("EffectiveCost", "ListCost", "ContractedCost"), line["BilledCost"])
    for name in COLUMNS:
        value = costs.get(name) or line.get(name) or ""
        yield value if name.endswith(("Cost", "Quantity")) else safe_cell(value)


async def _corrections(engine: "AsyncEngine", begin: datetime, end: datetime) -> dict[Group, Sum]:
    """What was booked in a month to correct earlier months' charges: few, so out of the rows."""
    c, wrong = charges.c, charges.alias("wrong").c
    wanted = (
        select(
            c.at_us, requests.c.team, requests.c.key, c.backend, c.machine, c.machine_type, c.kind,
            c.cost_nano_usd, c.prompt_tokens, c.completion_tokens,
        )
        .join(requests, requests.c.request_id == c.request_id)
        .where(wrong.request_id == c.request_id, wrong.seq == c.reverses_seq)
        .where(c.at_us >= to_us(begin.timestamp()), c.at_us < to_us(end.timestamp()))
        .where(c.reverses_seq.is_not(None), wrong.at_us < to_us(begin.timestamp()))
    )  # fmt: skip
    async with engine.connect() as connection:
        rows = (await connection.execute(wanted)).all()
        names = await subjects.names_of(connection, (row.team for row in rows))
    found: dict[Group, Sum] = {}
    for at_us, team, *keys, nano_usd, prompt, completion in rows:
        day = datetime.fromtimestamp(at_us / 1e6, UTC).date().isoformat()
        one = found.setdefault((day, subjects.shown(team, names), *keys), Sum())
        one.requests += 1
        one.tokens += prompt + completion
        one.nano_usd += nano_usd
    return found


def _usage(group: Group, found: Sum, *, corrects: bool = False) -> dict[str, str]:
    told = dict(zip(_KEYS, group, strict=True))
    day = datetime.fromisoformat(told["day"] or "").replace(tzinfo=UTC)
    provider = told["machine"] or told["backend"] or _OURSELVES
    team, backend, tokens = told["team"] or "", told["backend"] or "", str(found.tokens)
    tags = {f"headgate/{key}": told[key] for key in ("key", "kind") if told[key] is not None}
    return {
        "ChargePeriodStart": _time(day),
        "ChargePeriodEnd": _time(day + timedelta(days=1)),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if corrects else "",
        "ChargeDescription": f"{found.requests} requests: {told['kind'] or 'not charged'}",
        "ChargeFrequency": "Usage-Based",
        "BilledCost": usd_text(found.nano_usd),
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "PricingQuantity": tokens,
        "PricingUnit": "Tokens",
        "PricingCategory": "Standard",
        "ProviderName": provider,
        "InvoiceIssuerName": provider,
        "ServiceName": "LLM inference",
        "SkuId": told["machine_type"] or "per-token",
        "SubAccountId": team,
        "SubAccountName": team,
        "ResourceId": backend,
        "ResourceName": backend,
        "ResourceType": "Backend" if backend else "",
        "Tags": msgspec.json.encode(tags).decode(),
    }


def _beside(bill: Bill, begin: datetime, end: datetime) -> Iterator[dict[str, str]]:
    """Idle machines and the like, by the hour; discounts, differences and what nobody explains."""
    for line in bill.lines:
        if line.kind == "team":
            continue
        posted = line.kind in ("discount", "difference")
        shown = {
            "ChargePeriodStart": _time(begin),
            "ChargePeriodEnd": _time(end),
            "ChargeCategory": _CATEGORIES.get(line.kind, "Usage"),
            "ChargeClass": "Correction" if line.note.startswith("corrects ") else "",
            "ChargeDescription": f"{line.kind.replace('_', ' ')} {line.note}".strip(),
            "ChargeFrequency": "One-Time" if posted else "Usage-Based",
            "BilledCost": usd_text(line.nano_usd),
            "ProviderName": line.name or "machines",
            "InvoiceIssuerName": line.name or "machines",
            "ServiceName": "Invoice" if posted else "Machine time",
            "SkuId": line.kind,
        }
        if shown["ChargeCategory"] == "Usage":
            shown |= dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), line.hours or "0")
            shown |= dict.fromkeys(("ConsumedUnit", "PricingUnit"), "Hours")
            shown["PricingCategory"] = "Standard"
        yield shown


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
