"""Templates, headers and the look of numbers."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from litestar import Response

from gateway.dashboard.charts import Chart, csv_of, iso
from gateway.ledger.money import dollars

if TYPE_CHECKING:
    from jinja2 import Environment

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    # not no-referrer: with it browsers send forms with `Origin: null`, as foreign pages may
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
STATIC: Mapping[str, str] = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


async def prepare() -> None:
    """Compile all templates before the first page, beside the requests instead of before them."""
    if not templates.cache_info().currsize:
        await asyncio.to_thread(templates)


def html(template: str, values: Mapping[str, Any], status: int = 200) -> Response[str]:
    """A page."""
    body = templates().get_template(f"{template}.html.jinja").render(**values)
    return Response(body, status_code=status, headers=dict(HEADERS), media_type="text/html")


def csv_file(chart: Chart) -> Response[str]:
    """A chart's numbers, to save."""
    headers = {**HEADERS, "content-disposition": f'attachment; filename="{chart.name}.csv"'}
    return Response(csv_of(chart), headers=headers, media_type="text/csv")


def static_file(name: str) -> bytes | None:
    """A file of the pages'; None: there is none of that name."""
    return _read(name) if name in STATIC else None


@cache
def _read(name: str) -> bytes:
    return files("gateway.dashboard").joinpath("static", name).read_bytes()


@cache
def _version(name: str) -> str:
    """Changes with the file, so that browsers may keep it."""
    return f"/static/{name}?v={sha256(_read(name)).hexdigest()[:10]}"


@cache
def templates() -> "Environment":
    """Compiled when the first page is asked for: most gateways never show one."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    loader = PackageLoader("gateway.dashboard", "templates")
    always = select_autoescape(default=True, default_for_string=True)
    found = Environment(
        loader=loader, autoescape=always, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    found.filters |= {
        "dollars": dollars,
        "number": number,
        "share": share,
        "ms": milliseconds,
        "seconds": seconds,
        "iso": iso,
        "us_iso": lambda us: iso(us / 1e6),
    }
    found.globals["static"] = _version
    for name in found.list_templates():
        found.get_template(name)
    return found


def number(value: float | str | None) -> str:
    """A count, or a figure with the digits that say something; – for none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return _three_digits(value)


def share(value: float | None) -> str:
    """Of 1, in per cent."""
    if value is None:
        return "–"
    if value >= 0.995:
        return f"{100 * value:,.0f} %"
    return f"{_three_digits(100 * value) if abs(value) >= 1e-6 else 0} %"


def _three_digits(value: float) -> str:
    """Without an exponent, however small."""
    return format(Decimal(f"{value:.3g}"), "f").replace("-", "−")


def milliseconds(value: float | None) -> str:
    """As ms below a second, else as seconds."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:,.1f} s" if value >= 10_000 else f"{value / 1000:.2f} s"
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms"


def seconds(value: float) -> str:
    """In the largest unit that keeps it above 2."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.0f} s"


def now() -> datetime:
    """Aware, UTC."""
    return datetime.now(UTC)
