"""What a path answers while the database is away."""

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import Unavailable


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Raises Unavailable where the database does not answer."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise Unavailable(f"The ledger's database does not answer: {error}.") from None
