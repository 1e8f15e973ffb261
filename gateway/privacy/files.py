"""The stores in the state folder: journals, what they kept aside, reservations, exports."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.ledger import journal
from gateway.ledger.ledger import Ledger
from gateway.privacy.model import EXPORTS, DeletionError, Places, Subject, matches

_PATIENCE_S = 10.0


class Journals:
    """Settlements on their way into the database; there they are deleted."""

    name = "journals"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        return [one for _, _, one in await asyncio.to_thread(_journalled, places, subject)]

    async def delete(self, places: Places, subject: Subject) -> int:
        """Have dead processes' rows written, wait for the living ones', drop what was refused.

        Raises:
            DeletionError: rows are still waiting for the database.
        """
        count = await asyncio.to_thread(_waiting, places, subject)
        ends = asyncio.get_running_loop().time() + _PATIENCE_S
        ledger = Ledger(places.settings, places.engine)
        try:
            await ledger.take_over()
            while waiting := await asyncio.to_thread(_waiting, places, subject):
                if asyncio.get_running_loop().time() > ends:
                    raise DeletionError(
                        f"{waiting} rows wait in {places.state_dir / 'journal'} for the database; "
                        "delete again when it has taken them"
                    )
                await asyncio.sleep(0.1)
                await ledger.take_over()
        finally:
            await ledger.aclose()
        return count + await asyncio.to_thread(_drop_refused, places, subject)


def _waiting(places: Places, subject: Subject) -> int:
    found = _journalled(places, subject)
    return sum(path.suffix == journal.SUFFIX for path, _, _ in found)


def _journalled(places: Places, subject: Subject) -> list[tuple[Path, bytes, dict[str, Any]]]:
    """(file, line, row) of the subject's in all segments and files of refused lines."""
    found = []
    for path in sorted((places.state_dir / "journal").glob("*")):
        for line in _lines(path):
            row = _row(line)
            request = row.get("request", {})
            marks = {kind: request.get(kind) for kind in ("team", "user", "key")}
            own = subject.is_of(**marks) or (not row and _names(line, subject))
            if own:
                found.append((path, line, row or {"broken": line.decode("utf-8", "replace")}))
    return found


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return []


def _row(line: bytes) -> dict[str, Any]:
    start = line.find(b"{")
    try:
        row = msgspec.json.decode(line[start:] if start >= 0 else line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return row if isinstance(row, dict) else {}


def _drop_refused(places: Places, subject: Subject) -> int:
    """Lines of `.bad` files, which nobody reads but people."""
    dropped = 0
    own = {(path, line) for path, line, _ in _journalled(places, subject) if path.suffix == ".bad"}
    for path in {path for path, _ in own}:
        kept = [line for line in _lines(path) if (path, line) not in own]
        dropped += len(_lines(path)) - len(kept)
        _replace(path, kept)
    return dropped


def _replace(path: Path, lines: list[bytes]) -> None:
    if not lines:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(".new")
    fresh.write_bytes(b"".join(line + b"\n" for line in lines))
    fresh.chmod(0o600)
    fresh.rename(path)


class Reservations:
    """What requests under a budget hold; a line goes when its request is over."""

    name = "reservations"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        return list(await asyncio.to_thread(lambda: list(self._own(places, subject))))

    async def delete(self, places: Places, subject: Subject) -> int:
        """Wait until none is left. Raises DeletionError if requests go on being served."""
        count = 0
        ends = asyncio.get_running_loop().time() + _PATIENCE_S
        while found := await self.export(places, subject):
            count = max(count, len(found))
            if asyncio.get_running_loop().time() > ends:
                raise DeletionError(
                    f"{len(found)} requests hold a budget; delete again when they are over (a dead "
                    "gateway's are once one is started again)"
                )
            await asyncio.sleep(0.1)
        return count

    def _own(self, places: Places, subject: Subject) -> Iterator[dict[str, Any]]:
        for path in (places.state_dir / "reservations").glob("*"):
            for line in _lines(path):
                row = _row(line)
                if subject.is_of(team=row.get("team"), user=row.get("user"), key=row.get("key")):
                    yield row


class Exports:
    """Files that `headgate report export` wrote here: one that names the subject goes whole."""

    name = "exports"

    async def export(self, places: Places, subject: Subject) -> list[dict[str, Any]]:
        found = await asyncio.to_thread(self._own, places, subject)
        return [{"file": str(path)} for path in found]

    async def delete(self, places: Places, subject: Subject) -> int:
        found = await asyncio.to_thread(self._own, places, subject)
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _own(self, places: Places, subject: Subject) -> list[Path]:
        names = [name.encode() for _, name in subject.everybody]
        folder = places.state_dir / EXPORTS
        return [
            path
            for path in sorted(folder.glob("*"))
            if path.suffix == ".parquet" or any(name in path.read_bytes() for name in names)
        ]


def _names(line: bytes, subject: Subject) -> bool:
    return matches([line.decode("utf-8", "replace")], subject)
