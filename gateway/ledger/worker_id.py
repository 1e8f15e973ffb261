"""The name of this process in leases and ledger rows."""

import uuid
from functools import cache


@cache
def worker_id() -> str:
    """The same for the whole life of the process, and no other process's ever."""
    return uuid.uuid4().hex
