"""The folders of a run: the state folder, which one process holds, and one for sockets."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import SettingsError


class AlreadyRunningError(Exception):
    """Another `headgate serve` uses this state folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the state folder.

    Raises:
        AlreadyRunningError: somebody else does; names the pid.
        SettingsError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise SettingsError(
            f"state folder {folder}: {error.strerror}; set $HEADGATE_STATE_DIR to another"
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRunningError(
                f"{folder} is in use by the process {file.read().strip() or '?'}; "
                "stop that one, or set $HEADGATE_STATE_DIR to another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_folder_path(state_dir: Path) -> Path:
    """A short folder for sockets: their paths are limited to 107 bytes."""
    digest = hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]
    parent = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path("/tmp" if len(parent) > 60 else parent) / f"headgate-{os.getuid()}-{digest}"


def make_run_folder(state_dir: Path) -> Path:
    """Make the folder for sockets, ours alone, and empty it of what a killed run left.

    Raises:
        SettingsError: it belongs to somebody else.
    """
    folder = run_folder_path(state_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise SettingsError(f"{folder} belongs to another user; set $XDG_RUNTIME_DIR")
    for leftover in folder.iterdir():
        if not leftover.is_dir():
            leftover.unlink()
    return folder
