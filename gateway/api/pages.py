"""Lists in pages, as OpenAI has them: `limit`, `after`, `order` in, `has_more` out."""

from typing import Any, cast

from litestar import Request

from gateway.batches.files import Order, Page
from gateway.errors import InvalidRequest


def asked_limit(request: Request[Any, Any, Any], *, limit: int, most: int) -> int:
    """How many entries the query asks for, else `limit`. Raises InvalidRequest."""
    text = request.query_params.get("limit") or str(limit)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise InvalidRequest(f"limit is {text[:20]!r}; allowed: 1 to {most}.", param="limit")
    return int(text)


def asked_page(request: Request[Any, Any, Any], *, limit: int, most: int) -> Page:
    """The page that the query asks for. Raises InvalidRequest."""
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order is {order[:20]!r}; allowed: asc, desc.", param="order")
    return Page(
        limit=asked_limit(request, limit=limit, most=most),
        after=query.get("after"),
        order=cast("Order", order),
        purpose=query.get("purpose"),
    )


def shown_page(found: list[dict[str, Any]], page: Page) -> dict[str, Any]:
    """The list object of a page and one more entry."""
    data = found[: page.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > page.limit,
    }
