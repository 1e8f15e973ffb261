"""One gateway process: `python -m gateway.processes.worker`, started by the supervisor.

Reads the runtime that $HEADGATE_RUNTIME names and serves the app with Granian in this process.
With [server] workers > 1 the first process starts the others beside itself; the kernel spreads
connections over them (SO_REUSEPORT). SIGTERM drains: new requests get 503 + Retry-After, running
ones may finish. If the parent dies, so does the worker.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import SettingsError

if TYPE_CHECKING:
    from gateway.processes.runtime import Runtime

METRICS_ENV = "PROMETHEUS_MULTIPROC_DIR"
_M_ARENA_MAX = -8
_POLL_S = 0.05
_BACKPRESSURE = 16_384
"""Requests at once; Granian drops connections beyond."""
_DRAIN_GRACE_S = 0.2
"""Listening goes on at least this long after SIGTERM, so that late requests hear 503."""


def main() -> int:
    """Serve until SIGTERM. Returns the exit code: 2 if it can never start as configured."""
    arguments = argparse.ArgumentParser(prog="gateway.processes.worker", description=__doc__)
    arguments.add_argument("--index", type=int, default=0, help="Which of the workers this is.")
    index: int = arguments.parse_args().index
    _go_without_rich()
    _use_one_blas_thread()

    from gateway.processes.process import tie_to
    from gateway.processes.runtime import Runtime

    tie_to(os.getppid())()
    _use_few_arenas()
    runtime = Runtime.load()
    workers = runtime.settings.server.workers
    if workers > 1:
        folder = Path(runtime.run_dir) / "metrics"
        if index == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        os.environ[METRICS_ENV] = str(folder)  # before anything imports prometheus_client

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(runtime, index))
    except SettingsError as error:
        print(f"headgate: {error}", file=sys.stderr)
        return 2  # the supervisor does not try again


async def _run(runtime: "Runtime", index: int) -> int:
    from gateway.observability import configure_logging
    from gateway.processes.process import Child, Spec
    from gateway.processes.runtime import RUNTIME_ENV

    configure_logging(runtime.settings.log_level)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    others: list[Child] = []
    if index == 0:
        for other in range(1, runtime.settings.server.workers):
            spec = Spec(
                name=f"gateway-{other}",
                command=[
                    sys.executable,
                    "-P",
                    "-m",
                    "gateway.processes.worker",
                    "--index",
                    str(other),
                ],
                env={RUNTIME_ENV: os.environ[RUNTIME_ENV]},
                stop_timeout_s=runtime.settings.server.drain_timeout_s + 3.0,
            )
            others.append(Child(spec))
    await asyncio.gather(*(child.start() for child in others))
    try:
        return await _serve(runtime, stop)
    finally:
        await asyncio.gather(*(child.stop() for child in others))


async def _serve(runtime: "Runtime", stop: asyncio.Event) -> int:
    """Serve the app until `stop`, then drain."""
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    from gateway.app import create_app
    from gateway.pipeline import Pipeline

    server_settings = runtime.settings.server
    app = create_app(runtime)
    pipeline: Pipeline = app.state["pipeline"]
    _settle_memory()
    server = Server(
        app,
        address=server_settings.host,
        port=server_settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=30_000),
        websockets=False,
        backlog=1024,
        backpressure=_BACKPRESSURE,
        log_enabled=False,
    )
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        stopping.cancel()
        error = serving.exception()
        _log().error("server_failed", error=repr(error))
        return 1
    await _drain(pipeline, server_settings.drain_timeout_s)
    server.stop()  # type: ignore[no-untyped-call]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(serving, 5.0)
    return 0


async def _drain(pipeline: Any, timeout_s: float) -> None:
    """Refuse new requests; wait for the running ones."""
    began = time.monotonic()
    pipeline.draining = True
    log = _log()
    log.info("drain_started", in_flight=pipeline.in_flight, timeout_s=timeout_s)
    while True:
        waited_s = time.monotonic() - began
        if pipeline.in_flight == 0 and waited_s >= _DRAIN_GRACE_S:
            break
        if waited_s >= timeout_s:
            log.warning("drain_timed_out", in_flight=pipeline.in_flight)
            break
        await asyncio.sleep(_POLL_S)
    log.info("drain_finished", seconds=round(time.monotonic() - began, 3))


def _log() -> Any:
    import structlog

    return structlog.get_logger(__name__)


def _use_one_blas_thread() -> None:
    """The classifier's products are so small that further threads only take memory and time."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy reads it at its import


def _go_without_rich() -> None:
    """structlog's renderer for consoles would load rich and pygments: 15 MB for prettier tracebacks
    that hardly any worker ever shows."""
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # as if it were not installed


def _use_few_arenas() -> None:
    """Keep glibc from giving every thread a heap of its own: they only fragment."""
    mallopt = _libc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def _settle_memory() -> None:
    """After start-up: what is alive now stays, so collections skip it; the rest goes back."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _libc(name: str) -> Any:
    """A function of glibc; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


if __name__ == "__main__":
    sys.exit(main())
