"""What requests under a budget hold, written down before they run: a file that outlives kill -9.

One file per process, flocked while it lives. A line opens a reservation (again: a larger one) or
ends it; ends may be lost, the ledger knows better. Whoever can lock a dead process's file settles
what is open in it: see gateway/processes/recovery.py.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct, field

from gateway.ledger.journal import write_whole
from gateway.ledger.worker_id import worker_id

log = structlog.get_logger(__name__)

SUFFIX = ".reservations"
MAX_BYTES = 1 << 20
"""Then a new file begins with what is still open."""
_END = b"-"


class Held(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request's reservation, with what its ledger row needs should nobody else write it."""

    request_id: str
    nano_usd: int
    at: float
    """Unix seconds."""
    endpoint: str
    model: str
    team: str
    key: str
    user: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    backends: tuple[str, ...] = ()
    """That may be asked, in order."""
    heeded_us: int | None = None
    """As `Settlement` says."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Held).decode


class ReservationLog:
    """This process's file; made when the first reservation is written."""

    def __init__(self, folder: Path, *, owner: str | None = None) -> None:
        self._folder = folder
        self._owner = owner or worker_id()
        self._open: dict[str, Held] = {}
        self._ends: list[bytes] = []
        """Of reservations whose lines are in the file."""
        self._told = 0
        """Of these, the ones that are there too."""
        self._path: Path | None = None
        self._descriptor = -1
        self._size = 0
        self._generation = 0

    def hold(self, held: Held) -> None:
        """Write a reservation down; it survives the process from the return on.

        Raises:
            OSError: the disk refuses: nothing may run on it.
        """
        if self._path is None or self._size > MAX_BYTES:
            self._begin()
        self._write(_encode(held) + b"\n")
        self._open[held.request_id] = held

    def more(self, request_id: str, nano_usd: int) -> None:
        """Write down that a reservation grew. Raises OSError."""
        held = self._open.get(request_id)
        if held is not None:
            self.hold(msgspec.structs.replace(held, nano_usd=nano_usd))

    def end(self, request_id: str) -> None:
        """Note that the request is settled; written with the next reservation."""
        if self._open.pop(request_id, None) is not None:
            self._ends.append(_END + request_id.encode("utf-8", "replace") + b"\n")

    def tidy(self) -> None:
        """Keep no name of whom nothing is open any more: off the requests' way, as it is slow."""
        if self._path is None or not self._ends:
            return
        with contextlib.suppress(OSError):
            if self._open:
                self._begin()
            else:
                os.ftruncate(self._descriptor, 0)
                self._ends.clear()
                self._told = self._size = 0

    def close(self) -> None:
        """Remove the file: whatever was open is settled, or its process could not be ending."""
        if self._path is not None:
            if not self._open:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._path = None

    def _write(self, line: bytes) -> None:
        data = b"".join(self._ends[self._told :]) + line
        try:
            write_whole(self._descriptor, data)
        except OSError:
            os.ftruncate(self._descriptor, self._size)  # the next line begins a line
            raise
        self._told = len(self._ends)
        self._size += len(data)

    def _begin(self) -> None:
        """A new file with what is open; only then the old one goes. Raises OSError: it stays."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._generation += 1
        path = self._folder / f"{os.getpid()}-{self._owner}-{self._generation}{SUFFIX}"
        new = path.with_suffix(".new")  # nobody takes it over before it is locked
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(new, flags, 0o600)
        data = b"".join(_encode(held) + b"\n" for held in self._open.values())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_whole(descriptor, data)
            new.rename(path)
        except OSError:
            new.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
        self._path, self._descriptor, self._size = path, descriptor, len(data)
        self._ends.clear()
        self._told = 0


class Orphan:
    """A dead process's file, locked by us until `remove` or `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.pid, self.owner, _ = path.name.removesuffix(SUFFIX).split("-")

    def open_reservations(self) -> list[Held]:
        """What had not ended, as last written."""
        found: dict[str, Held] = {}
        for line in self.path.read_bytes().split(b"\n")[:-1]:  # a torn last line never ran
            if line.startswith(_END):
                found.pop(line[1:].decode("utf-8", "replace"), None)
                continue
            try:
                held = _decode(line)
            except msgspec.MsgspecError as error:
                log.error("reservation_unreadable", path=str(self.path), error=str(error))
                continue
            found[held.request_id] = held
        return list(found.values())

    def remove(self) -> None:
        """All is settled."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def release(self) -> None:
        """Not now; somebody may try again."""
        os.close(self._descriptor)


def take_over(folder: Path) -> Iterator[Orphan]:
    """Lock, one after another, the files whose writers are gone."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        if path.exists():
            yield Orphan(path, descriptor)
        else:
            os.close(descriptor)
