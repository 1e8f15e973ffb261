"""The books for other programs: CSV and Parquet by charge; `focus` has them by day.

Amounts are decimal strings in CSV and decimal128 in Parquet, never floats. A cell that a
spreadsheet would run as a formula gets an apostrophe in front.
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
from gateway.ledger.money import to_usd

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS = ("request_id", "kind", "team", "key", "user", "model", "policy", "rule", "task")
_WORK = ("outcome", "backend", "machine", "machine_type")
_COUNTS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "machine_ns")
_NANO_DIGITS = 9
COLUMNS = ("at", "seq", *_TEXTS, *_WORK, "tags", *_COUNTS, "cost_usd", "reverses_seq")
"""Of an exported charge."""


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
