"""Every charge of a period beside its request, in the order of booking, page by page."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_, select

from gateway.ledger import subjects
from gateway.ledger.tables import charges, requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_PAGE = 1_000
_OF_REQUEST = ("team", "key", "user", "model", "policy", "rule", "task", "outcome", "tags")


async def booked(
    connection: "AsyncConnection", *, since_us: int, until_us: int
) -> AsyncIterator[list[dict[str, Any]]]:
    """Pages of rows: all columns of `charges`, and of the request who, for what and how.

    Teams and users bear their names.
    """
    c, r = charges.c, requests.c
    at: tuple[int, str, int] = (since_us, "", -1)
    while True:
        later = or_(
            c.at_us > at[0],
            and_(c.at_us == at[0], c.request_id > at[1]),
            and_(c.at_us == at[0], c.request_id == at[1], c.seq > at[2]),
        )
        page = (
            await connection.execute(
                select(*charges.c, *(r[name] for name in _OF_REQUEST))
                .join_from(charges, requests, r.request_id == c.request_id)
                .where(c.at_us >= at[0], later, c.at_us < until_us)
                .order_by(c.at_us, c.request_id, c.seq)
                .limit(_PAGE)
            )
        ).all()
        if not page:
            return
        yield await _named(connection, page)
        at = (page[-1].at_us, page[-1].request_id, page[-1].seq)


async def _named(connection: "AsyncConnection", page: Sequence[Any]) -> list[dict[str, Any]]:
    ids = {row.team for row in page} | {row.user for row in page if row.user is not None}
    names = await subjects.names_of(connection, ids)
    return [
        {
            **row._mapping,
            "team": subjects.shown(row.team, names),
            "user": subjects.shown(row.user, names),
        }
        for row in page
    ]
