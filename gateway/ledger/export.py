"""The books for other programs: CSV and Parquet by charge, FOCUS CSV by day.

Amounts are decimal strings in CSV and decimal128 in Parquet, never floats. A cell that a
spreadsheet would run as a formula gets an apostrophe in front.

Source of the FOCUS columns: FinOps Open Cost and Usage Specification 1.0, focus.finops.org.
"""

import csv
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from gateway.ledger.book import booked
from gateway.ledger.csv_text import safe_cell
from gateway.ledger.money import to_usd, usd_text
from gateway.ledger.month_end import Bill, bounds
from gateway.ledger.month_end import bill as bill_of
from gateway.ledger.reports import costs_report
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS = ("request_id", "kind", "team", "key", "user", "model", "policy", "rule", "task")
_WORK = ("outcome", "backend", "machine", "machine_type")
_COUNTS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "machine_ns")
_NANO_DIGITS = 9
COLUMNS = ("at", "seq", *_TEXTS, *_WORK, "tags", *_COUNTS, "cost_usd", "reverses_seq")
"""Of an exported charge."""
FOCUS_COLUMNS = (
    *("BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"),
    *("ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"),
    *("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "PricingCategory"),
    *("ProviderName", "PublisherName", "InvoiceIssuerName"),
    *("ServiceCategory", "ServiceName", "SkuId", "SubAccountId", "SubAccountName"),
    *("ResourceId", "ResourceName", "ResourceType", "RegionId", "Tags"),
)


class ExportError(Exception):
    """A file cannot be written, and what would help."""


async def charges_csv(
    connection: "AsyncConnection", file: IO[str], *, since_us: int, until_us: int
) -> int:
    """Write one line per charge; how many."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    async for page in _exported(connection, since_us, until_us):
        writer.writerows([_cell(row[name]) for name in COLUMNS] for row in page)
        count += len(page)
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return format(value, "f")
    return safe_cell(value) if value is None or isinstance(value, str) else value


async def charges_parquet(
    connection: "AsyncConnection", file: Path, *, since_us: int, until_us: int
) -> int:
    """Write one row per charge; how many.

    Raises:
        ExportError: pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ExportError("Parquet needs pyarrow: pip install 'headgate[export]'") from None
    whole, text = arrow.int64(), arrow.string()
    kinds = {
        "at": arrow.timestamp("us", tz="UTC"),
        "cost_usd": arrow.decimal128(38, _NANO_DIGITS),
        **dict.fromkeys(("seq", "reverses_seq", *_COUNTS), whole),
    }
    schema = arrow.schema([(name, kinds.get(name, text)) for name in COLUMNS])
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        async for page in _exported(connection, since_us, until_us):
            writer.write_table(arrow.Table.from_pylist(page, schema=schema))
            count += len(page)
    return count


async def _exported(
    connection: "AsyncConnection", since_us: int, until_us: int
) -> AsyncIterator[list[dict[str, Any]]]:
    async for page in booked(connection, since_us=since_us, until_us=until_us):
        yield [
            {
                **{name: row[name] for name in COLUMNS if name in row},
                "at": _EPOCH + timedelta(microseconds=row["at_us"]),
                "tags": msgspec.json.encode(row["tags"], order="sorted").decode(),
                "cost_usd": to_usd(row["cost_nano_usd"]),
            }
            for row in page
        ]


async def focus_csv(engine: "AsyncEngine", settings: Settings, file: IO[str], month: str) -> int:
    """Write a month in FOCUS: usage by day, then what the bill has beside it; how many lines.

    The lines' BilledCost sum to the month's bill.
    """
    begin, end = bounds(month)
    usage = await costs_report(
        engine,
        settings,
        group_by="day,team,key,backend,machine,machine_type,kind",
        since=begin.isoformat(),
        until=end.isoformat(),
    )
    lines = [_usage(row) for row in usage["rows"] if row["requests"] or row["cost_usd"] != "0"]
    lines += _beside(await bill_of(engine, settings, month), begin, end)
    common = {
        "BillingAccountId": "headgate",
        "BillingAccountName": "Headgate",
        "BillingCurrency": "USD",
        "BillingPeriodStart": _focus_time(begin),
        "BillingPeriodEnd": _focus_time(end),
        "ChargeFrequency": "Usage-Based",
        "PublisherName": "Headgate",
        "ServiceCategory": "AI and Machine Learning",
    }
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FOCUS_COLUMNS)
    for line in lines:
        cost = line["BilledCost"]
        costs = dict.fromkeys(("EffectiveCost", "ListCost", "ContractedCost"), cost)
        whole = {**common, **costs, **line}
        writer.writerow(
            [
                whole.get(name, "")
                if name.endswith(("Cost", "Quantity"))
                else safe_cell(whole.get(name))
                for name in FOCUS_COLUMNS
            ]
        )
    return len(lines)


def _usage(row: dict[str, Any]) -> dict[str, str]:
    day = datetime.fromisoformat(row["day"]).replace(tzinfo=UTC)
    provider = row["machine"] or row["backend"] or ""
    tokens = str(row["prompt_tokens"] + row["completion_tokens"])
    return {
        "ChargePeriodStart": _focus_time(day),
        "ChargePeriodEnd": _focus_time(day + timedelta(days=1)),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if row["kind"] == "reversal" else "",
        "ChargeDescription": f"{row['requests']} requests: {row['kind'] or 'not charged'}",
        "BilledCost": row["cost_usd"],
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "PricingQuantity": tokens,
        "PricingUnit": "Tokens",
        "PricingCategory": "Standard",
        "ProviderName": provider,
        "InvoiceIssuerName": provider,
        "ServiceName": "LLM inference",
        "SkuId": row["machine_type"] or "per-token",
        "SubAccountId": row["team"] or "",
        "SubAccountName": row["team"] or "",
        "ResourceId": row["backend"] or "",
        "ResourceName": row["backend"] or "",
        "ResourceType": "Backend",
        "Tags": msgspec.json.encode({"key": row["key"], "kind": row["kind"]}).decode(),
    }


def _beside(bill: Bill, begin: datetime, end: datetime) -> list[dict[str, str]]:
    """Idle machines and the like, discounts and differences."""
    categories = {"discount": "Credit", "difference": "Adjustment"}
    return [
        {
            "ChargePeriodStart": _focus_time(begin),
            "ChargePeriodEnd": _focus_time(end),
            "ChargeCategory": categories.get(line.kind, "Usage"),
            "ChargeClass": "Correction" if line.note.startswith("corrects ") else "",
            "ChargeDescription": f"{line.kind.replace('_', ' ')} {line.note}".strip(),
            "BilledCost": usd_text(line.nano_usd),
            "PricingCategory": "Standard",
            "ProviderName": line.name or "machines",
            "InvoiceIssuerName": line.name or "machines",
            "ServiceName": "Machine time" if line.kind not in categories else "Invoice",
            "SkuId": line.kind,
        }
        for line in bill.lines
        if line.kind != "team"
    ]


def _focus_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
