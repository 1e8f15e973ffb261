"""`headgate serve`: the gateway's workers, one process per local backend, the encoder, Redis.

Order of a start: lock the state folder, remove what a killed run left, start Redis, encoder and
engines (they load while the database migrates), start the gateway, wait until it is ready.
Order of a stop: the gateway drains first, then the engines go, then Redis.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import socket as socket_module
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import structlog

from backends.meter import METER_ENV, Meter
from gateway.errors import SettingsError
from gateway.ledger.foreign_time import foreign_machine
from gateway.ledger.machine_time import MachineClock
from gateway.process import Child, Spec
from gateway.runtime import RUNTIME_ENV, Address, Runtime, database_url
from gateway.settings import BackendSettings, Settings

log = structlog.get_logger(__name__)

_CLOCK_INTERVAL_S = 10.0
_READY_TIMEOUT_S = 120.0
_ALL_READY_TIMEOUT_S = 30.0
ENCODER_NAME = "minilm"
_ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""The classifier's products are small: further threads only take memory."""
PYTHON = (sys.executable, "-P", "-m")
"""-P: a folder `policies` where the user works must not stand in for our package."""


class AlreadyRunningError(Exception):
    """Another `headgate serve` uses this state folder."""


class PortInUseError(Exception):
    """Something else listens where the gateway should."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the state folder. Raises AlreadyRunningError naming the holder's pid."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
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


def process_names(backend: BackendSettings) -> list[str]:
    """Of the processes that serve a local backend: its own name, then `NAME#2` and so on."""
    further = range(2, backend.replicas + 1)
    return [backend.name, *(f"{backend.name}#{number}" for number in further)]


def engine_command(
    backend: BackendSettings,
    socket: Path,
    threads: int,
    adapters: Sequence[BackendSettings] = (),
) -> list[str]:
    """Command line of the process that serves a local engine and LoRA adapters of its model."""
    command = [*PYTHON, "backends.server", "--model", backend.model]
    command += ["--served-model-name", backend.name, "--uds", str(socket)]
    if backend.quantization not in (None, "none"):
        command += ["--quantization", backend.quantization]
    engine = backend.engine
    for name in engine.__struct_fields__:
        value = getattr(engine, name)
        if name == "threads":
            value = value or threads
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            command.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            command += [flag, str(value)]
    for adapter in adapters:
        command += ["--lora-modules", f"{adapter.name}={adapter.model}"]
    speculation = backend.speculation
    command += ["--speculation-method", speculation.method]
    if speculation.draft_model:
        command += ["--draft-model", speculation.draft_model]
    if speculation.num_tokens:
        command += ["--num-speculative-tokens", str(speculation.num_tokens)]
    return command


class Supervisor:
    """Runs everything that a configuration names, until told to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state_dir = Path(settings.state_dir)
        self.run_dir = make_run_folder(self.state_dir)
        self.helpers: list[Child] = []
        """Redis, encoder, engines: started before the gateway, stopped after it."""
        self.gateway: Child | None = None
        self._sockets: dict[str, tuple[str, Path]] = {}
        """Backend → (machine, socket) of every process that computes."""
        self._meters: dict[str, Meter] = {}
        """By machine."""
        self._foreign: dict[str, int] = {}
        """Machines behind other people's servers → the gateway's first place at their meter."""
        self._stop = asyncio.Event()
        self._refused: str | None = None
        """The process that said that it can never start as configured."""
        self._clock: MachineClock | None = None

    async def run(self) -> int:
        """Start, wait for SIGTERM or SIGINT, drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        clock_reader: asyncio.Task[None] | None = None
        try:
            runtime = await self._start_helpers()
            await self._migrate(runtime.database_url)
            self._clock = MachineClock(runtime.database_url)
            await self._start_gateway(runtime)
            clock_reader = asyncio.create_task(self._read_clocks())
            ready = asyncio.create_task(self._announce(runtime))
            await self._stop.wait()
            ready.cancel()
        finally:
            if clock_reader:
                clock_reader.cancel()
            await self._shut_down()
        if self._refused:
            raise SettingsError(f"{self._refused} cannot start as configured; it says why above")
        return 0

    async def _start_helpers(self) -> Runtime:
        settings = self.settings
        adapters = [b for b in settings.backends if b.lora_of is not None]
        local = [
            b for b in settings.backends if b.kind in ("engine", "encoder") and b not in adapters
        ]
        engines = sum(backend.replicas for backend in local if backend.kind == "engine")
        threads = max(1, (os.cpu_count() or 1) // max(1, engines))
        self._meters = self._make_meters(local)
        redis_url = await self._start_redis()
        addresses: dict[str, Address] = {}
        for backend in local:
            own = [adapter for adapter in adapters if adapter.lora_of == backend.name]
            sockets = []
            for name in process_names(backend):
                socket = self.run_dir / f"{name}.sock"
                if backend.kind == "engine":
                    command = engine_command(backend, socket, threads, own)
                else:
                    command = self._encoder_command(backend.name, backend.model, socket)
                await self._start_backend(backend, name, socket, command)
                sockets.append(str(socket))
            addresses[backend.name] = Address(uds=sockets[0], replicas=tuple(sockets[1:]))
        for adapter in adapters:
            addresses[adapter.name] = addresses[adapter.lora_of or ""]
        for backend in settings.backends:
            if backend.kind == "openai":
                addresses[backend.name] = Address(base_urls=tuple(backend.base_urls))
        return Runtime(
            settings=settings,
            addresses=addresses,
            encoder=await self._start_encoder(addresses),
            redis_url=redis_url,
            database_url=database_url(settings),
            state_dir=str(self.state_dir),
            run_dir=str(self.run_dir),
            started_at=time.time(),
            foreign_meters={
                machine: (str(self._meters[machine].path), first)
                for machine, first in self._foreign.items()
            },
        )

    async def _start_redis(self) -> str | None:
        cache = self.settings.cache
        if cache.redis == "memory":
            return None
        if cache.redis != "auto":
            return cache.redis
        from gateway.cache.server import redis_command

        socket = self.run_dir / "redis.sock"
        folder = self.state_dir / "redis"
        folder.mkdir(exist_ok=True)
        command = redis_command(socket, folder, cache.max_memory_bytes)
        await self._start(Spec(name="redis", command=command, socket=socket))
        return f"unix://{socket}"

    async def _start_encoder(self, addresses: dict[str, Address]) -> Address | None:
        semantic = self.settings.cache.semantic
        if not semantic.enabled:
            return None
        if semantic.encoder in addresses:
            return addresses[semantic.encoder]
        socket = self.run_dir / f"{ENCODER_NAME}.sock"
        backend = _own_encoder(semantic.encoder)
        command = self._encoder_command(ENCODER_NAME, semantic.encoder, socket)
        await self._start_backend(backend, ENCODER_NAME, socket, command)
        return Address(uds=str(socket))

    @staticmethod
    def _encoder_command(name: str, model: str, socket: Path) -> list[str]:
        command = [*PYTHON, "backends.encoder", "--model", model]
        return [*command, "--served-model-name", name, "--uds", str(socket)]

    async def _start_backend(
        self, backend: BackendSettings, name: str, socket: Path, command: list[str]
    ) -> None:
        machine = self.settings.machine(backend)
        env = {}
        if machine is not None:
            self._sockets[name] = (machine.name, socket)
            meter = self._meters[machine.name]
            env[METER_ENV] = f"{meter.path}:{meter.names.index(name)}"
        await self._start(Spec(name=name, command=command, socket=socket, env=env))

    def _make_meters(self, local: list[BackendSettings]) -> dict[str, Meter]:
        """A file for each machine, through which its processes share its time."""
        names: dict[str, list[str]] = {}
        foreign = {foreign_machine(self.settings, backend) for backend in self.settings.backends}
        semantic = self.settings.cache.semantic
        if semantic.enabled and semantic.encoder not in [backend.name for backend in local]:
            local = [*local, _own_encoder(semantic.encoder)]
        for backend in local:
            machine = self.settings.machine(backend)
            if machine is not None:
                names.setdefault(machine.name, []).extend(process_names(backend))
        workers = [f"gateway-{index}" for index in range(self.settings.server.workers)]
        for name in sorted(name for name in foreign if name is not None):
            self._foreign[name] = len(names.setdefault(name, []))
            names[name] += workers
        return {
            machine: Meter(self.run_dir / f"{index}.meter", found)
            for index, (machine, found) in enumerate(names.items())
        }

    def _metered(self, child: Child) -> tuple[Meter, int] | None:
        """A child's machine's meter and its place there."""
        known = self._sockets.get(child.spec.name)
        if known is None:
            return None
        meter = self._meters[known[0]]
        return meter, meter.names.index(child.spec.name)

    def _meter_start(self, child: Child, pid: int) -> None:
        metered = self._metered(child)
        if metered is not None:
            metered[0].enter(metered[1], pid)

    async def _start(self, spec: Spec) -> None:
        child = Child(
            spec,
            on_started=self._meter_start,
            on_stopped=self._record_run,
            on_refused=self._refuse,
        )
        self.helpers.append(child)
        try:
            await child.start()
        except OSError as error:
            raise SettingsError(f"cannot start {spec.name} ({spec.command[0]}): {error}") from None

    async def _migrate(self, url: str) -> None:
        from migrations.runner import upgrade

        await asyncio.to_thread(upgrade, url)

    async def _start_gateway(self, runtime: Runtime) -> None:
        path = self.run_dir / "runtime.json"
        runtime.save(path)
        self.gateway = Child(
            Spec(
                name="gateway",
                command=[*PYTHON, "gateway.worker"],
                env={RUNTIME_ENV: str(path), **_ONE_BLAS_THREAD},
                stop_timeout_s=self.settings.server.drain_timeout_s + 5.0,
            ),
            on_started=self._meter_gateway,
            on_stopped=self._record_gateway,
            on_refused=self._refuse,
        )
        await self.gateway.start()

    def _meter_gateway(self, _child: Child, pid: int) -> None:
        for machine, first in self._foreign.items():
            self._meters[machine].enter(first, pid)

    async def _record_gateway(self, child: Child, started: float, ended: float) -> None:
        """Nobody tells when a machine behind somebody else's server runs: it is paid for as long
        as the gateway is there to ask it."""
        for machine, first in self._foreign.items():
            meter = self._meters[machine]
            for place in range(first, len(meter.names)):
                meter.leave(place)
            await self._note_run(machine, child.spec.name, started, ended)

    def _refuse(self, child: Child) -> None:
        self._refused = child.spec.name
        self._stop.set()

    async def _announce(self, runtime: Runtime) -> None:
        """Print the ready line once every local backend answers (or enough have had time)."""
        server = self.settings.server
        host = f"[{server.host}]" if ":" in server.host else server.host
        url = f"http://{host}:{server.port}"
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=url, timeout=2.0) as client:
            while True:
                waited = time.monotonic() - began
                ready, missing = await self._readiness(client)
                if ready and (not missing or waited > _ALL_READY_TIMEOUT_S):
                    break
                if waited > _READY_TIMEOUT_S:
                    log.error("gateway_not_ready", waited_s=round(waited), missing=missing)
                    return
                await asyncio.sleep(0.1)
        seconds = time.time() - runtime.started_at
        print(
            f"Headgate is ready at {url} after {seconds:.1f} s. Try:\n"
            f"  curl {url}/v1/chat/completions -H 'content-type: application/json' "
            '-d \'{"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 3?"}]}\'',
            flush=True,
        )
        if missing:
            log.warning("backends_not_ready", missing=missing)

    async def _readiness(self, client: httpx.AsyncClient) -> tuple[bool, list[str]]:
        """Whether the gateway can answer, and which local backends cannot yet."""
        try:
            response = await client.get("/health/ready")
        except httpx.HTTPError:
            return False, []
        missing = []
        for name, (_, socket) in self._sockets.items():
            health = await _get(socket, "/health/ready")
            if health is None or health.status_code != 200:
                missing.append(name)
        return response.status_code == 200, missing

    async def _record_run(self, child: Child, started: float, ended: float) -> None:
        """The machine time of a process: measured here, at its start and at its end."""
        metered = self._metered(child)
        if metered is not None:
            metered[0].leave(metered[1])
        known = self._sockets.get(child.spec.name)
        if known is not None:
            await self._note_run(known[0], child.spec.name, started, ended)

    async def _note_run(self, machine: str, name: str, started: float, ended: float) -> None:
        if self._clock is None:
            return
        try:
            await self._clock.record_run(machine, name, int(started * 1e9), int(ended * 1e9))
        except Exception as error:
            log.error("machine_time_lost", name=name, error=str(error))

    async def _read_clocks(self) -> None:
        while True:
            # On the hour as well: a row that crosses it could not be told to either.
            to_hour_s = 3600.0 - time.time() % 3600.0
            await asyncio.sleep(min(_CLOCK_INTERVAL_S, to_hour_s + 0.001))
            await self._read_clocks_once()

    async def _read_clocks_once(self) -> None:
        clock = self._clock
        if clock is None:
            return
        now_ns = time.time_ns()
        try:
            for child in self.helpers:
                known = self._sockets.get(child.spec.name)
                if known is not None and child.pid is not None:
                    started_ns = int(child.started_at * 1e9)
                    await clock.record_run(known[0], child.spec.name, started_ns, now_ns)
            if self.gateway is not None and self.gateway.pid is not None:
                started_ns = int(self.gateway.started_at * 1e9)
                for machine in self._foreign:
                    await clock.record_run(machine, self.gateway.spec.name, started_ns, now_ns)
            for machine, meter in self._meters.items():
                await clock.record_meter(machine, meter.read(), now_ns)
        except Exception as error:
            log.error("machine_time_lost", error=str(error))

    async def _shut_down(self) -> None:
        if self.gateway:
            await self.gateway.stop()
        await self._read_clocks_once()
        await asyncio.gather(*(c.stop() for c in self.helpers if c.spec.name != "redis"))
        await asyncio.gather(*(c.stop() for c in self.helpers if c.spec.name == "redis"))
        await self._read_clocks_once()  # what they took to stop, and what they lost
        if self._clock:
            await self._clock.aclose()
        for meter in self._meters.values():
            meter.close()


def _own_encoder(model: str) -> BackendSettings:
    """The semantic cache's encoder where the configuration lists none."""
    return BackendSettings(name=ENCODER_NAME, kind="encoder", model=model)


async def _get(socket: Path, path: str) -> httpx.Response | None:
    """GET over a Unix socket; None if nobody answers there."""
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    try:
        async with httpx.AsyncClient(transport=transport, timeout=2.0) as client:
            return await client.get(f"http://backend{path}")
    except (httpx.HTTPError, OSError):
        return None


def _with_port(settings: Settings) -> Settings:
    """Check that the port is free; port 0 made a free one, which every worker needs to know."""
    server = settings.server
    family = socket_module.AF_INET6 if ":" in server.host else socket_module.AF_INET
    with closing(socket_module.socket(family)) as probe:
        probe.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise PortInUseError(
                f"cannot listen on {server.host}:{server.port}: {error.strerror}; "
                "stop what listens there, or choose another --port"
            ) from None
        port = int(probe.getsockname()[1])
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(server, port=port))


def serve(settings: Settings) -> int:
    """Run a supervisor to its end.

    Raises:
        AlreadyRunningError: the state folder is in use.
        PortInUseError: the port is taken.
        SettingsError: something configured cannot be started.
    """
    with locked(Path(settings.state_dir)):
        return asyncio.run(Supervisor(_with_port(settings)).run())
