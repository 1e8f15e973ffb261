"""Long looks into the ledger, in a child of the lowest priority: who is served here feels nothing.

A forecast reads weeks of roll-ups. In the gateway's own process that is a second of a core, taken
from requests; a child at the end of the kernel's queue takes only what nobody else wants, and what
it had to import ends with it. `python -m gateway.processes.aside` reads one Question and prints
its answer.
"""

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

LONGEST_S: Final = 300.0
"""A busy machine leaves the lowest priority little time."""
_ANSWERS: Final[Mapping[str, str]] = {
    "month_end": "gateway.insights.outlook:month_end",
    "idle_hints": "gateway.insights.hints:hint_texts",
    "hourly_findings": "gateway.alerts.checks:hourly_findings",
}
"""Each `async (engine, settings, **about)`, giving what JSON can say."""

Aside = Callable[..., Awaitable[Any]]
"""`ask_aside`, or `answer` where no process is wanted."""


class AsideError(RuntimeError):
    """The child found no answer; its last words say why."""


class Question(Struct, frozen=True, kw_only=True):
    """What the child is told on its standard input."""

    name: str
    about: dict[str, Any]
    database_url: str
    """With its password: nobody else reads the pipe."""
    settings: Settings


async def ask_aside(
    engine: "AsyncEngine", settings: Settings, name: str, **about: str | float | int
) -> Any:
    """The answer to one of the questions, as JSON, from a child process.

    Raises:
        AsideError: it failed, or took longer than LONGEST_S.
    """
    url = engine.url.render_as_string(hide_password=False)
    question = Question(name=name, about=about, database_url=url, settings=settings)
    child = _start()
    try:  # in a thread: a loop that ends while it starts a process of its own may wait for ever
        async with asyncio.timeout(LONGEST_S):
            told = msgspec.json.encode(question)
            out, words = await asyncio.to_thread(child.communicate, told)
    except TimeoutError:
        raise AsideError(f"{name} took longer than {LONGEST_S:g} s") from None
    finally:
        child.kill()  # where it still runs; the thread reaps it
    if child.returncode:
        said = words.decode(errors="replace").strip().splitlines()
        raise AsideError(f"{name} failed: {said[-1] if said else child.returncode}")
    return msgspec.json.decode(out)


def _start() -> "subprocess.Popen[bytes]":
    """By vfork: a millisecond."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "gateway.processes.aside"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def answer(
    engine: "AsyncEngine", settings: Settings, name: str, **about: str | float | int
) -> Any:
    """The same in this process."""
    module, _, function = _ANSWERS[name].partition(":")
    found = await getattr(importlib.import_module(module), function)(engine, settings, **about)
    return msgspec.to_builtins(found)


async def _answer(question: Question) -> Any:
    from gateway.ledger.database import open_engine

    engine = open_engine(question.database_url)
    try:
        return await answer(engine, question.settings, question.name, **question.about)
    finally:
        await engine.dispose()


def main() -> int:
    """Answer what stands on the standard input; whatever else is printed goes to stderr."""
    from gateway.processes.process import tie_to

    tie_to(os.getppid())()
    os.nice(19)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
        try:
            out.write(msgspec.json.encode(asyncio.run(_answer(question))))
        except Exception as error:  # whatever it is, the parent logs it in one line
            print(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
