"""What a path answers when the database does not do what it was asked for."""

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import GatewayError, InvalidRequest, Unavailable

_NO_TEXT = "22021"
"""PostgreSQL's code for a text that it cannot hold: one with a NUL."""


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turns the database's errors into refusals.

    Raises:
        Unavailable: it does not answer.
        InvalidRequest: it cannot hold what it was given.
    """
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise database_refusal(error) from None


def database_refusal(error: Exception) -> GatewayError:
    """As the client hears of it, without the statement."""
    cause = getattr(error, "orig", None) or error
    if getattr(cause, "sqlstate", None) == _NO_TEXT:
        return InvalidRequest("A name or an id has a NUL character; leave it out.")
    return Unavailable(f"The ledger's database does not answer: {str(cause)[:200]}.")
