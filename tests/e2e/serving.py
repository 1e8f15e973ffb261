"""A real `headgate serve` in a subprocess, for end-to-end tests."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import OpenAI

READY = re.compile(r"Headgate is ready at (http://\S+)")


class Headgate:
    """`headgate serve` on a free port with a state folder of its own."""

    def __init__(
        self,
        folder: Path,
        config: str | None = None,
        *,
        env: dict[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "gateway"),
        args: tuple[str, ...] = ("--port", "0"),
    ) -> None:
        self.folder = folder
        self.url = ""
        self.log = folder / "serve.log"
        self._headgate = command
        self._args = args
        if config is not None:
            (folder / "headgate.toml").write_text(config)
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")},
            "HEADGATE_STATE_DIR": str(folder / "state"),
            **(env or {}),
        }
        self.process: subprocess.Popen[str] | None = None
        self.ready_after_s = 0.0

    def start(self, timeout_s: float = 90.0) -> "Headgate":
        """Start and wait for the ready line."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._headgate, "serve", *self._args],
                cwd=self.folder,
                env=self._env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        lines: list[str] = []
        found = threading.Event()

        def read() -> None:
            assert self.process is not None
            assert self.process.stdout is not None
            for line in self.process.stdout:
                lines.append(line)
                match = READY.search(line)
                if match:
                    self.url = match.group(1)
                    found.set()
            found.set()

        threading.Thread(target=read, daemon=True).start()
        if not found.wait(timeout_s) or not self.url:
            self.kill()
            raise AssertionError(f"not ready in {timeout_s} s:\n{''.join(lines)}\n{self.tail()}")
        self.ready_after_s = time.monotonic() - began
        return self

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop within 60 s:\n{self.tail()}") from None
        self.process = None
        return code

    def kill(self) -> None:
        """kill -9 of the supervisor alone; its children must notice by themselves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def children(self, marker: str) -> list[psutil.Process]:
        """Running processes below the supervisor whose command line contains `marker`."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if marker in " ".join(_command_line(child))]

    def tail(self, characters: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def sdk(self, **options: Any) -> OpenAI:
        """The OpenAI SDK pointed at it."""
        options.setdefault("api_key", "unused")
        return OpenAI(base_url=f"{self.url}/v1", max_retries=0, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET a path of the gateway."""
        return httpx.get(self.url + path, timeout=30, **options)

    def cli(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `headgate` command against it, from its folder."""
        done = subprocess.run(
            [*self._headgate, *args],
            cwd=self.folder,
            env={**self._env, "HEADGATE_URL": self.url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{args}: {done.stderr}{done.stdout}"
        return done


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for(condition: Any, timeout_s: float = 60.0, what: str = "the condition") -> Any:
    """Poll until `condition()` is truthy; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not hold within {timeout_s} s"
        time.sleep(0.05)
