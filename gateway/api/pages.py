"""What a team has uploaded or begun, as OpenAI shows it: one by its id, all in pages.

`limit`, `after` and `order` in, `has_more` out.
"""

from typing import Any, Protocol, cast

from litestar import Request

from gateway.api.database import answering
from gateway.api.guards import caller_of
from gateway.batches.files import Order, Page
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.keys import Caller


class Shelf(Protocol):
    """A store of files, of batches."""

    async def find(self, caller: Caller, id_: str, /) -> dict[str, Any] | None:
        """The caller's team's, as shown; None: there is none."""

    async def listed(self, caller: Caller, page: Page) -> list[dict[str, Any]]:
        """A page, and one more where there is another page."""


async def one_of(request: Request[Any, Any, Any], shelf: Shelf, what: str) -> dict[str, Any]:
    """The one whose `id` stands in the path. Raises NotFound, in whose words it is a `what`."""
    id_ = request.path_params["id"]
    with answering():
        shown = await shelf.find(caller_of(request), id_)
    if shown is None:
        raise NotFound(f"There is no {what} {id_!r}.", param="id")
    return shown


async def page_of(
    request: Request[Any, Any, Any], shelf: Shelf, *, limit: int, most: int
) -> dict[str, Any]:
    """The page that the query asks for. Raises InvalidRequest."""
    page = asked_page(request, limit=limit, most=most)
    with answering():
        return shown_page(await shelf.listed(caller_of(request), page), page)


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
