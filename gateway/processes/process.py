"""One supervised child process: start, watch, restart with back-off, stop.

Children die with their parent even when that is killed: on Linux the kernel signals them
(PR_SET_PDEATHSIG).
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog
from msgspec import Struct, field

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_BACKOFF_S = (0.5, 30.0)
_HEALTHY_AFTER_S = 60.0
_REFUSED = 2
"""Exit code of a process that can never start as configured: no use to try again."""

Started = Callable[["Child", int], None]
"""Called with the child and its pid whenever a process has been started."""
Stopped = Callable[["Child", float, float], Awaitable[None]]
"""Called with the child, its start and its end (Unix seconds) whenever a process has ended."""


class Spec(Struct, frozen=True, kw_only=True):
    """What to run."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    socket: Path | None = None
    """Removed before each start: a killed process leaves it behind."""
    stop_timeout_s: float = 10.0
    """After SIGTERM, before SIGKILL."""


def tie_to(parent: int) -> Callable[[], None]:
    """What ties the process that calls it to the life of its parent `parent` (a pid).

    Made before a fork and called after it: there is no room for imports in between.
    """
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)

    return tie


class Child:
    """A process that is kept running until `stop()`."""

    def __init__(
        self,
        spec: Spec,
        *,
        on_started: Started | None = None,
        on_stopped: Stopped | None = None,
        on_refused: "Callable[[Child], None] | None" = None,
    ) -> None:
        self.spec = spec
        self.restarts = 0
        self.started_at = 0.0
        """Unix seconds of the running process's start."""
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._on_refused = on_refused
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the running process, None between two."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def start(self) -> None:
        """Start the process and watch it. Raises OSError when the command cannot be run."""
        await self._spawn()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.spec.name}")

    async def stop(self) -> None:
        """SIGTERM, wait, SIGKILL. Safe to call twice."""
        self._stopping.set()
        process = self._process
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self.spec.stop_timeout_s)
            except TimeoutError:
                log.warning("process_killed", name=self.spec.name, pid=process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._watcher:
            await self._watcher

    async def _spawn(self) -> None:
        if self.spec.socket:
            self.spec.socket.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            env={**os.environ, **self.spec.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr,  # stdout is for the ready line
            start_new_session=True,  # Ctrl-C reaches only the supervisor, which drains in order
            preexec_fn=tie_to(os.getpid()),
        )
        self.started_at = time.time()
        if self._on_started:
            self._on_started(self, self._process.pid)
        log.info("process_started", name=self.spec.name, pid=self._process.pid)

    async def _watch(self) -> None:
        delay = _BACKOFF_S[0]
        while True:
            process = self._process
            assert process is not None
            code = await process.wait()
            ended = time.time()
            if self._on_stopped:
                await self._on_stopped(self, self.started_at, ended)
            if self._stopping.is_set():
                log.info("process_stopped", name=self.spec.name, exit_code=code)
                return
            if code == _REFUSED and self._on_refused:
                self._on_refused(self)
                return
            if ended - self.started_at > _HEALTHY_AFTER_S:
                delay = _BACKOFF_S[0]
            log.error("process_died", name=self.spec.name, exit_code=code, restart_in_s=delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return
            delay = min(delay * 2, _BACKOFF_S[1])
            self.restarts += 1
            try:
                await self._spawn()
            except OSError as error:
                log.error("process_start_failed", name=self.spec.name, error=str(error))
