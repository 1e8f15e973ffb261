"""`headgate serve`: the gateway's workers, one process per local backend, the encoder, Redis.

Order of a start: lock the state folder, remove what a killed run left, start Redis, encoder and
engines (they load while the database migrates), start the gateway, wait until it is ready.
Order of a stop: the gateway drains first, then the engines go, then Redis.
"""

import asyncio
import os
import signal
import socket as socket_module
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import structlog

from gateway.errors import SettingsError
from gateway.processes.machine_watch import MachineWatch, process_names
from gateway.processes.process import Child, Spec
from gateway.processes.run_folder import locked, make_run_folder
from gateway.processes.runtime import RUNTIME_ENV, RUNTIME_FILE, Address, Runtime, database_url
from gateway.settings import BackendSettings, Settings

log = structlog.get_logger(__name__)

_READY_TIMEOUT_S = 120.0
_ALL_READY_TIMEOUT_S = 30.0
ENCODER_NAME = "minilm"
PYTHON = (sys.executable, "-P", "-m")
"""-P: a folder `policies` where the user works must not stand in for our package."""


class PortInUseError(Exception):
    """Something else listens where the gateway should."""


class DatabaseRefusedError(Exception):
    """The database cannot be reached or upgraded."""


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
        self._sockets: dict[str, Path] = {}
        """Of every process that computes, by its name."""
        self._stop = asyncio.Event()
        self._refused: str | None = None
        """The process that said that it can never start as configured."""
        self._local = [
            b for b in settings.backends if b.kind in ("engine", "encoder") and b.lora_of is None
        ]
        self._encoder = _own_encoder(settings)
        own = [] if self._encoder is None else [self._encoder]
        self._watch = MachineWatch(settings, [*self._local, *own], self.run_dir)

    async def run(self) -> int:
        """Start, wait for SIGTERM or SIGINT, drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        clock_reader: asyncio.Task[None] | None = None
        try:
            runtime = await self._start_helpers()
            await self._migrate(runtime.database_url)
            self._watch.open(runtime.database_url)
            self.gateway = self._gateway_child(runtime)
            await self.gateway.start()
            reading = self._watch.keep_reading(self.helpers, self.gateway)
            clock_reader = asyncio.create_task(reading)
            ready = asyncio.create_task(self._announce(runtime))
            await self._stop.wait()
            ready.cancel()
        finally:
            if clock_reader:
                clock_reader.cancel()
            await self._shut_down()
            (self.run_dir / RUNTIME_FILE).unlink(missing_ok=True)
        if self._refused:
            raise SettingsError(f"{self._refused} cannot start as configured; it says why above")
        return 0

    async def _start_helpers(self) -> Runtime:
        settings = self.settings
        adapters = [b for b in settings.backends if b.lora_of is not None]
        engines = sum(backend.replicas for backend in self._local if backend.kind == "engine")
        threads = max(1, (os.cpu_count() or 1) // max(1, engines))
        redis_url = await self._start_redis()
        addresses: dict[str, Address] = {}
        for backend in self._local:
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
            foreign_meters=self._watch.foreign_meters,
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
        if self._encoder is None:
            return addresses[semantic.encoder]
        socket = self.run_dir / f"{ENCODER_NAME}.sock"
        command = self._encoder_command(ENCODER_NAME, semantic.encoder, socket)
        await self._start_backend(self._encoder, ENCODER_NAME, socket, command)
        return Address(uds=str(socket))

    @staticmethod
    def _encoder_command(name: str, model: str, socket: Path) -> list[str]:
        command = [*PYTHON, "backends.encoder", "--model", model]
        return [*command, "--served-model-name", name, "--uds", str(socket)]

    async def _start_backend(
        self, backend: BackendSettings, name: str, socket: Path, command: list[str]
    ) -> None:
        env = self._watch.env(backend, name)
        if env:
            self._sockets[name] = socket
        await self._start(Spec(name=name, command=command, socket=socket, env=env))

    async def _start(self, spec: Spec) -> None:
        child = Child(
            spec,
            on_started=self._watch.started,
            on_stopped=self._watch.stopped,
            on_refused=self._refuse,
        )
        self.helpers.append(child)
        try:
            await child.start()
        except OSError as error:
            raise SettingsError(f"cannot start {spec.name} ({spec.command[0]}): {error}") from None

    async def _migrate(self, url: str) -> None:
        from alembic.util import CommandError
        from sqlalchemy.exc import SQLAlchemyError

        from gateway.ledger.database import without_password
        from migrations.runner import upgrade

        try:
            await asyncio.to_thread(upgrade, url)
        except (SQLAlchemyError, OSError, CommandError) as error:
            words = str(error).splitlines()[0]
            raise DatabaseRefusedError(f"the database {without_password(url)}: {words}") from None

    def _gateway_child(self, runtime: Runtime) -> Child:
        path = self.run_dir / RUNTIME_FILE
        runtime.save(path)
        return Child(
            Spec(
                name="gateway",
                command=[*PYTHON, "gateway.processes.worker"],
                env={RUNTIME_ENV: str(path)},
                stop_timeout_s=self.settings.server.drain_timeout_s + 5.0,
            ),
            on_started=self._watch.gateway_started,
            on_stopped=self._watch.gateway_stopped,
            on_refused=self._refuse,
        )

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
        key = "-H 'authorization: Bearer KEY' " if self.settings.server.auth == "keys" else ""
        print(
            f"Headgate is ready at {url} after {seconds:.1f} s. Try:\n"
            f"  curl {url}/v1/chat/completions {key}-H 'content-type: application/json' "
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
        for name, socket in self._sockets.items():
            health = await _get(socket, "/health/ready")
            if health is None or health.status_code != 200:
                missing.append(name)
        return response.status_code == 200, missing

    async def _shut_down(self) -> None:
        if self.gateway:
            await self.gateway.stop()
        await self._watch.read(self.helpers, self.gateway)
        await asyncio.gather(*(c.stop() for c in self.helpers if c.spec.name != "redis"))
        await asyncio.gather(*(c.stop() for c in self.helpers if c.spec.name == "redis"))
        await self._watch.read(self.helpers, self.gateway)  # how they stopped, what they lost
        await self._watch.aclose()


def _own_encoder(settings: Settings) -> BackendSettings | None:
    """The semantic cache's encoder; None: it is not needed, or listed among the backends."""
    semantic = settings.cache.semantic
    if not semantic.enabled or semantic.encoder in {b.name for b in settings.backends}:
        return None
    return BackendSettings(name=ENCODER_NAME, kind="encoder", model=semantic.encoder)


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
        AlreadyRunningError: the state folder is in use (see `locked`).
        PortInUseError: the port is taken.
        DatabaseRefusedError: the database cannot be reached or upgraded.
        SettingsError: something configured cannot be started.
    """
    with locked(Path(settings.state_dir)):
        return asyncio.run(Supervisor(_with_port(settings)).run())
