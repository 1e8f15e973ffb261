"""Supervised children: restarted, refused, stopped, never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from backends.client.openai_http import OpenAIHTTPBackend
from gateway.errors import SettingsError
from gateway.processes.assembly import open_backend
from gateway.processes.machine_watch import process_names
from gateway.processes.process import Child, Spec
from gateway.processes.run_folder import (
    AlreadyRunningError,
    locked,
    make_run_folder,
    run_folder_path,
)
from gateway.processes.runtime import Address
from gateway.processes.supervisor import engine_command
from gateway.settings import BackendSettings, EngineSettings, Settings, SpeculationSettings, check

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


async def until(condition: object, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_killed_child_is_started_again() -> None:
    """After kill -9 a new process runs under another pid, and the run was reported."""
    runs: list[tuple[float, float]] = []

    async def note(child: Child, started: float, ended: float) -> None:
        runs.append((started, ended))

    child = Child(Spec(name="sleeper", command=SLEEP), on_stopped=note)
    await child.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in (None, first))
    assert child.restarts == 1
    await child.stop()
    assert child.pid is None
    assert len(runs) == 2
    assert all(started <= ended for started, ended in runs)


async def test_child_that_refuses_its_configuration_is_not_tried_again() -> None:
    """Exit code 2 is reported once, without restarts."""
    refused: list[str] = []
    child = Child(
        Spec(name="picky", command=(sys.executable, "-c", "raise SystemExit(2)")),
        on_refused=lambda child: refused.append(child.spec.name),
    )
    await child.start()
    await until(lambda: refused)
    assert refused == ["picky"]
    assert child.restarts == 0
    await child.stop()


async def test_stubborn_child_is_killed() -> None:
    """A process that ignores SIGTERM is gone after its time is up."""
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    child = Child(Spec(name="deaf", command=(sys.executable, "-c", script), stop_timeout_s=0.3))
    await child.start()
    await asyncio.sleep(0.5)
    pid = child.pid
    assert pid is not None
    await child.stop()
    assert not psutil.pid_exists(pid)


async def test_stale_socket_is_removed_before_a_start(tmp_path: Path) -> None:
    """What a killed process left at its socket's path does not stop the next one."""
    socket = tmp_path / "x.sock"
    socket.touch()
    child = Child(Spec(name="sleeper", command=SLEEP, socket=socket))
    await child.start()
    assert not socket.exists()
    await child.stop()


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of the parent ends its children."""
    script = (
        "import asyncio, sys\n"
        "from gateway.processes.process import Child, Spec\n"
        "async def main():\n"
        f"    child = Child(Spec(name='c', command={SLEEP!r}))\n"
        "    await child.start()\n"
        "    print('pid', child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    lines = iter(parent.stdout.readline, b"")
    child = psutil.Process(next(int(line.split()[1]) for line in lines if line.startswith(b"pid")))
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    child.wait(10)
    assert not child.is_running()


def test_state_folder_is_held_by_one_process(tmp_path: Path) -> None:
    """A second holder is refused, naming the first; after the first the folder is free."""
    with locked(tmp_path), pytest.raises(AlreadyRunningError, match=str(os.getpid())):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_run_folder_is_short_private_and_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Socket paths fit their 107 bytes, others cannot enter, and leftovers are gone."""
    state = tmp_path / ("deep" * 50)
    with TemporaryDirectory() as runtime_dir:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
        folder = make_run_folder(state)
        (folder / "old.sock").touch()
        assert make_run_folder(state) == folder
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o077 == 0
        assert len(str(folder / ("b" * 40))) < 107


def test_run_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder planted by another user is not used."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    make_run_folder(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    planted = run_folder_path(tmp_path)
    planted.mkdir()
    try:
        with pytest.raises(SettingsError, match="another user"):
            make_run_folder(tmp_path)
    finally:
        planted.rmdir()


def test_engine_command_hands_on_every_setting(tmp_path: Path) -> None:
    """What the configuration says of an engine reaches its command line, in vLLM's flags."""
    backend = BackendSettings(
        name="big",
        model="/m",
        quantization="int8",
        engine=EngineSettings(max_num_seqs=8, enable_prefix_caching=False, dtype="bfloat16"),
        speculation=SpeculationSettings(method="draft", draft_model="bundled:nano", num_tokens=3),
    )
    sql = BackendSettings(name="sql", model="/adapters/sql", lora_of="big")
    command = " ".join(engine_command(backend, tmp_path / "s", threads=3, adapters=[sql]))
    for part in (
        "--model /m",
        "--served-model-name big",
        "--quantization int8",
        "--max-num-seqs 8",
        "--no-enable-prefix-caching",
        "--dtype bfloat16",
        "--threads 3",
        "--speculation-method draft",
        "--draft-model bundled:nano",
        "--num-speculative-tokens 3",
        "--lora-modules sql=/adapters/sql",
    ):
        assert part in command


def test_replicas_of_an_engine_are_processes_with_sockets_of_their_own() -> None:
    """Their names cannot be another backend's; one client asks all of them."""
    engine = BackendSettings(name="nano", model="bundled:nano", replicas=3)
    assert process_names(engine) == ["nano", "nano#2", "nano#3"]
    assert process_names(BackendSettings(name="one", model="m")) == ["one"]
    sockets = tuple(f"/run/{name}.sock" for name in process_names(engine))
    made = open_backend(engine, Address(uds=sockets[0], replicas=sockets[1:]))
    assert isinstance(made, OpenAIHTTPBackend)
    assert len(made.breakers) == 3
    with pytest.raises(SettingsError, match="only of kind engine"):
        check(
            Settings(backends=[BackendSettings(name="e", kind="echo", model="m", replicas=2)]),
            "here",
        )
