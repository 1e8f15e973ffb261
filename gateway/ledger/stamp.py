"""A file whose change tells the gateways on this host that keys or budgets changed: look now.

Other hosts find out by asking the database again, a second or two later.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

NAME = "admin.stamp"
"""In the state folder."""


class Stamp:
    """Sees whether the file changed since the last look: one stat(), a microsecond.

    Args:
        path: the file, which need not exist; None: never changes.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = None if path is None else str(path)
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether it did; the next call compares with now."""
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> int:
        if self._path is None:
            return 0
        try:
            return os.stat(self._path).st_mtime_ns  # noqa: PTH116 (a Path would double the cost)
        except OSError:
            return 0


def beside(engine: "AsyncEngine") -> Path | None:
    """The stamp of a SQLite database's folder; None for a server's database."""
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file or file == ":memory:":
        return None
    return Path(file).parent / NAME


def touch(folder: Path) -> None:
    """Tell the gateways that use this state folder, if there is one."""
    if folder.is_dir():
        (folder / NAME).touch()
