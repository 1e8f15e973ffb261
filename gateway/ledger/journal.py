"""An append-only file per process that makes settled requests survive kill -9.

A line is `crc32 as 8 hex digits, space, the settlement's JSON, newline`. `append` is one write():
from then on the row outlives the process. A thread fsyncs in groups, so a power cut loses at most
the last interval. A segment is removed when all its rows stand in the database. Each segment is
flocked while its writer lives; whoever can lock one that is not its own takes it over. A torn last
line (the writer died in the middle) is skipped; a broken line elsewhere is kept in a `.bad` file.
"""

import errno
import fcntl
import os
import threading
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
SYNC_INTERVAL_S = 0.05
_ROOM_BYTES = 64 * 1024
"""That a disk that was full must have again."""
_MOST_SEGMENTS = 16
"""About so many at once, however long the database is away."""
SUFFIX = ".journal"


class Segment:
    """One file of the journal, held open and locked by its writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.size = 0
        self.appended = 0
        self.committed = 0
        self.dirty = False
        """Has rows that are not synced."""
        self.closed = False
        """Takes no more rows."""
        self.spilled = False
        """Has rows that are no longer in memory: only reading it again can commit them."""

    @property
    def done(self) -> bool:
        """All its rows are in the database."""
        return self.committed >= self.appended and not self.spilled


class Journal:
    """The journal of one process: `append` on the event loop, fsync on a thread of its own.

    What says that it waits for the disk belongs on other threads than the event loop's; `append`
    does not wait for it.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._stop = threading.Event()
        self._syncer = threading.Thread(target=self._sync_loop, name="journal-sync", daemon=True)
        self._syncer.start()
        self.errors = 0
        self.last_error: str | None = None
        """Of the last append or sync; None when it worked."""

    def append(self, *payloads: bytes) -> Segment | None:
        """Write settlements' JSON; they survive the process from the return on.

        Returns:
            The segment that holds them; None if the disk refused: counted, logged once per streak,
            and the caller goes on with the rows in memory only.
        """
        lines = b"".join(b"%08x %b\n" % (zlib.crc32(payload), payload) for payload in payloads)
        segment: Segment | None = None
        with self._lock:
            try:
                segment = self._active(len(lines))
                write_whole(segment.descriptor, lines)
            except OSError as error:
                if segment is not None:
                    self._cut_back(segment)
                self._failed(error)
                return None
            segment.size += len(lines)
            segment.appended += len(payloads)
            segment.dirty = True
        self._dirty.set()
        self.last_error = None
        return segment

    def try_again(self) -> bool:
        """Whether the disk takes rows; after one that it refused, a look whether it has room."""
        if self.last_error is None:
            return True
        with self._lock:
            segment: Segment | None = None
            try:
                segment = self._active(_ROOM_BYTES)
                write_whole(segment.descriptor, b" " * _ROOM_BYTES)
            except OSError as error:
                self.last_error = _told(error)
                return False
            finally:
                if segment is not None:
                    self._cut_back(segment)
        self.last_error = None
        log.warning("journal_written_again", folder=str(self.folder))
        return True

    def _active(self, more_bytes: int) -> Segment:
        active = self._segments[-1] if self._segments else None
        if active is None or active.closed or active.size + more_bytes > self._room():
            if active is not None:
                active.closed = True
            name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}{SUFFIX}"
            active = Segment(self.folder / name)
            self._segments.append(active)
        return active

    def _room(self) -> int:
        """How large a segment may grow: with the backlog, as each holds a file descriptor."""
        return max(self._segment_bytes, self.size_bytes // _MOST_SEGMENTS)

    def _cut_back(self, segment: Segment) -> None:
        """Drop the half-written line; if even that fails, no more rows go into this segment."""
        try:
            os.ftruncate(segment.descriptor, segment.size)
        except OSError:
            segment.closed = True

    def _failed(self, error: OSError) -> None:
        self.errors += 1
        if self.last_error is None:
            log.error("journal_write_failed", folder=str(self.folder), error=_told(error))
        self.last_error = _told(error)

    def committed(self, segment: Segment, rows: int) -> None:
        """Note that `rows` more rows of the segment are in the database; forget it when all are.

        Waits for the disk: shortening a file waits for what is being written of it.
        """
        with self._lock:
            segment.committed += rows
            empties = segment.done and not segment.closed
            segment.closed = segment.closed or empties  # no row goes in meanwhile
        if empties:
            self._empty(segment)
        self._remove_done()

    def _empty(self, segment: Segment) -> None:
        """What stands in the database need not stand here too: deleting data looks there only."""
        try:
            os.ftruncate(segment.descriptor, 0)
        except OSError as error:
            self._failed(error)
            return
        with self._lock:
            if segment is self._segments[-1]:
                segment.size = segment.appended = segment.committed = 0
                segment.closed = False

    def _remove_done(self) -> None:
        with self._lock:
            gone = [segment for segment in self._segments if segment.closed and segment.done]
            self._segments = [segment for segment in self._segments if segment not in gone]
        for segment in gone:
            segment.path.unlink(missing_ok=True)
            os.close(segment.descriptor)

    def spilled(self) -> list[Segment]:
        """Segments with rows that memory no longer has."""
        return [segment for segment in self._segments if segment.spilled]

    def replayed(self, segment: Segment) -> None:
        """Note that a spilled segment was read and committed as a whole. Waits for the disk."""
        with self._lock:
            segment.spilled = False
            segment.committed = segment.appended
        self._remove_done()

    @property
    def size_bytes(self) -> int:
        """Bytes in this process's segments."""
        return sum(segment.size for segment in self._segments)

    def sync(self) -> None:
        """fsync what was appended. Called by the thread; an error is counted, not raised."""
        with self._lock:  # held for the dup only: append must never wait for a slow disk
            dirty = [segment for segment in self._segments if segment.dirty]
            descriptors = [os.dup(segment.descriptor) for segment in dirty]
            for segment in dirty:
                segment.dirty = False
        for descriptor in descriptors:
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                self._failed(error)
            finally:
                os.close(descriptor)

    def _sync_loop(self) -> None:
        while not self._stop.is_set():
            self._dirty.wait()
            self._dirty.clear()
            self.sync()
            self._stop.wait(SYNC_INTERVAL_S)

    def close(self) -> None:
        """Sync and let go. Segments with rows that are not committed stay for a later replay."""
        if self._segments:
            self._segments[-1].closed = True
        self._remove_done()
        self._stop.set()
        self._dirty.set()
        self._syncer.join(timeout=5)
        self.sync()
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()


def write_whole(descriptor: int, data: bytes) -> None:
    """Raises OSError: all or a part is missing."""
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _told(error: OSError) -> str:
    return error.strerror or str(error)


class Orphan:
    """A dead process's segment, locked by us until `remove` or `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def remove(self) -> None:
        """All rows are in the database."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def release(self) -> None:
        """Not now; somebody may try again."""
        os.close(self._descriptor)


def take_over(folder: Path) -> Iterator[Orphan]:
    """Lock, one after another, the segments whose writers are gone."""
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=_age):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        if path.exists():  # else another process replayed and removed it between open and lock
            yield Orphan(path, descriptor)
        else:
            os.close(descriptor)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def read(path: Path) -> Iterator[bytes]:
    """The payloads of a segment whose checksums hold.

    A torn last line is logged and skipped. Any other broken line is logged and kept in `<name>.bad`
    beside the segment, for a person to look at.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            payload = _payload(line)
            if payload is not None:
                yield payload
            elif not line.endswith(b"\n"):
                log.warning("journal_line_torn", path=str(path), line=number)
            else:
                keep_aside(path, line, reason="checksum", line_number=number)


def _payload(line: bytes) -> bytes | None:
    if len(line) < 10 or not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    payload = line[9:-1]
    return payload if line[:8] == b"%08x" % zlib.crc32(payload) else None


def keep_aside(path: Path, line: bytes, *, reason: str, line_number: int | None = None) -> None:
    """Put a line that can never be committed into `<name>.bad`, once."""
    bad = path.with_suffix(".bad")
    if bad.exists() and line.rstrip(b"\n") in bad.read_bytes().splitlines():
        return
    log.error("journal_line_kept_aside", path=str(bad), line=line_number, reason=reason)
    with os.fdopen(os.open(bad, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
        file.write(line.rstrip(b"\n") + b"\n")
