"""What callers say of answers: rows beside the requests, for `policy fit` and `policy replay`."""

from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy import func, select

from gateway.ledger.tables import feedback, requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Opinion(Struct, frozen=True, kw_only=True):
    """The mean score of one answered request, with what its prompt was predicted to be."""

    request_id: str
    backend: str
    difficulty: float
    head: str
    score: float


async def add_feedback(
    connection: "AsyncConnection", request_id: str, *, score: float, comment: str, now: float
) -> None:
    """Append one opinion."""
    values = {
        "request_id": request_id,
        "score": score,
        "comment": comment,
        "at_us": round(now * 1e6),
    }
    await connection.execute(feedback.insert(), values)


async def opinions(connection: "AsyncConnection", *, since_us: int = 0) -> list[Opinion]:
    """Answered requests with feedback since then, the oldest first."""
    wanted = (
        select(
            requests.c.request_id,
            requests.c.backend,
            requests.c.difficulty,
            requests.c.head,
            func.avg(feedback.c.score),
        )
        .join(feedback, feedback.c.request_id == requests.c.request_id)
        .where(requests.c.backend.is_not(None), requests.c.difficulty.is_not(None))
        .where(requests.c.started_us >= since_us)
        .group_by(
            requests.c.request_id,
            requests.c.backend,
            requests.c.difficulty,
            requests.c.head,
            requests.c.started_us,
        )
        .order_by(requests.c.started_us)
    )
    return [
        Opinion(request_id=i, backend=b, difficulty=d, head=h, score=s)
        for i, b, d, h, s in (await connection.execute(wanted)).all()
    ]
