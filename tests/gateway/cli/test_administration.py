"""Whom commands of administration ask: the running gateway, else the database."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from gateway.cli.common import gateway_url
from gateway.processes.run_folder import make_run_folder
from gateway.processes.runtime import RUNTIME_FILE, Runtime
from gateway.settings import ServerSettings, Settings
from tests.gateway.cli.conftest import Headgate
from tests.gateway.serving import Gateway, gateway, settings

ADMIN = "the-operators-own"


class Answer(NamedTuple):
    """Of a scripted server."""

    status: int
    body: bytes


@contextmanager
def listening(answer: Callable[[str, str, dict[str, str], bytes], Answer]) -> Iterator[int]:
    """An HTTP server on a free port, which it gives."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            found = answer(self.command, self.path, headers, self.rfile.read(length))
            self.send_response(found.status)
            self.send_header("content-length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@contextmanager
def running(chosen: Settings) -> Iterator[int]:
    """A gateway behind a real port, in an event loop of its own."""
    ready: Future[tuple[asyncio.AbstractEventLoop, Gateway, asyncio.Event]] = Future()

    async def serve() -> None:
        over = asyncio.Event()
        async with gateway(chosen) as served:
            ready.set_result((asyncio.get_running_loop(), served, over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    loop, served, over = ready.result(30)

    def pass_on(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        asked = served.client.request(method, path, headers=headers, content=body)
        answer = asyncio.run_coroutine_threadsafe(asked, loop).result(30)
        return Answer(answer.status_code, answer.content)

    try:
        with listening(pass_on) as port:
            yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)


@pytest.fixture
def served(headgate: Headgate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gateway that wants keys runs on the commands' state folder, where the settings say."""
    (tmp_path / "admin").write_text(ADMIN)
    server = ServerSettings(auth="keys", admin_key_file=str(tmp_path / "admin"))
    with running(settings(tmp_path, server=server)) as port:
        monkeypatch.setenv("HEADGATE_PORT", str(port))
        yield


def _actors(headgate: Headgate) -> set[str]:
    return {act["actor"] for act in headgate.json("audit", "--json")}


@pytest.mark.usefixtures("served")
def test_running_gateway_does_what_commands_say(
    headgate: Headgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of administration works by it, with the operator's key, and the audit log
    names who used that."""
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", ADMIN)
    team = "Qu'est-ce, 50% / ü?"
    made = headgate.json("keys", "create", "--team", team, "--model", "small", "--json")
    assert set(made) == {"id", "key"}
    (key,) = headgate.json("keys", "list", "--team", team, "--json")
    assert (key["id"], key["only"]) == (made["id"], {"models": ["small"]})
    assert key["created_at"].endswith("Z")
    limited = headgate.json("keys", "limit", made["id"], "--usd-per-minute", "0.10", "--json")
    assert limited["limits"] == {"usd_per_minute": "0.1"}
    rotated = headgate.json("keys", "rotate", made["id"], "--overlap-s", "9", "--json")
    assert rotated["id"] == made["id"]
    headgate.json("users", "create", "a/b", "--team", team, "--rpm", "5", "--json")
    assert headgate.json("users", "list", "--json")[0]["limits"] == {"requests_per_minute": 5}
    assert headgate.json("users", "remove", "a/b", "--json")["keys_revoked"] == 0
    assert headgate.json("teams", "create", "other", "--json")["created"]
    headgate.json("teams", "limit", team, "--weight", "3", "--json")
    assert {one["name"]: one["weight"] for one in headgate.json("teams", "list", "--json")} == {
        team: 3,
        "other": 1,
    }
    scope = ("--scope", f"team:{team}", "--window", "day")
    of_nobody = headgate.run("budgets", "set", "--scope", "team:serach", "--limit-usd", "5")
    assert "there is no team 'serach'" in of_nobody.stderr
    assert headgate.run("budgets", "remove", "--scope", "team:serach").exit_code == 0
    set_ = headgate.json("budgets", "set", *scope, "--limit-usd", "5", "--json")
    assert set_["warning"] is None
    assert headgate.json("budgets", "list", "--json")[0]["left_usd"] == "5"
    assert headgate.json("budgets", "remove", *scope, "--json")["removed"]
    assert headgate.json("budgets", "overruns", "--days", "2", "--json") == []
    assert headgate.json("keys", "revoke", made["id"], "--json")["revoked_at"]
    assert "kept in database" in headgate.run("backends", "drain", "small").stdout
    (actor,) = _actors(headgate)
    assert actor.startswith("admin (cli")
    by = headgate.json("audit", "--actor", "admin", "--action", "keys.create", "--json")
    assert [act["target"] for act in by] == [made["id"]]


@pytest.mark.usefixtures("served")
def test_gateway_that_refuses_is_obeyed(
    headgate: Headgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without the scope: 1, and why; what the gateway calls a mistake: 2; nothing is done."""
    weak = headgate.json("keys", "create", "--team", "search", "--json")["key"]
    monkeypatch.setenv("HEADGATE_API_KEY", weak)
    for key, words in ((weak, "needs the scope 'admin'"), ("hg-none", "unknown, expired")):
        monkeypatch.setenv("HEADGATE_API_KEY", key)
        refused = headgate.run("budgets", "set", "--scope", "global", "--limit-usd", "5")
        assert refused.exit_code == 1
        assert words in refused.stderr
        assert "$HEADGATE_ADMIN_KEY" in refused.stderr
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", ADMIN)
    wrong = headgate.run("budgets", "set", "--scope", "global", "--limit-usd", "0")
    assert (wrong.exit_code, "allowed: more than 0" in wrong.stderr) == (2, True)
    assert headgate.run("keys", "revoke", "key_none").exit_code == 1
    assert headgate.json("budgets", "list", "--json") == []


@pytest.mark.usefixtures("served")
def test_first_key_comes_out_of_the_database(headgate: Headgate) -> None:
    """Who has no key yet, but may write where the gateway reads, makes one."""
    headgate.json("keys", "create", "--team", "search", "--scope", "admin", "--json")
    (actor,) = _actors(headgate)
    assert actor.startswith("cli")


def test_no_secret_goes_to_what_is_no_gateway(
    headgate: Headgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else on our port is asked no more than whether it is one; nobody there: that too
    is the database's; a gateway that somebody named is missed aloud."""
    seen: list[tuple[str, dict[str, str]]] = []

    def answer(method: str, path: str, headers: dict[str, str], _: bytes) -> Answer:
        seen.append((f"{method} {path}", headers))
        return Answer(404, b'{"error": {"code": 404, "message": "File Not Found"}}')

    monkeypatch.setenv("HEADGATE_ADMIN_KEY", ADMIN)
    with listening(answer) as port:
        monkeypatch.setenv("HEADGATE_PORT", str(port))
        headgate.json("teams", "create", "first", "--json")
    quiet = headgate.run("teams", "create", "second")
    assert quiet.stderr == ""
    assert [one for one, _ in seen] == ["GET /health/live"]
    assert ADMIN not in str(seen)
    monkeypatch.setenv("HEADGATE_URL", "http://127.0.0.1:9")
    aloud = headgate.run("teams", "list")
    assert "no gateway answers at http://127.0.0.1:9" in aloud.stderr
    assert "first" in aloud.stdout
    assert "second" in aloud.stdout


def test_a_named_gateway_that_wants_a_key_is_no_other_ones_database(
    headgate: Headgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key for it nothing is done here, in a database that is none of its."""

    def answer(_method: str, path: str, _headers: dict[str, str], _body: bytes) -> Answer:
        if path == "/health/live":
            return Answer(200, b'{"status": "live"}')
        return Answer(401, b'{"error": {"message": "No API key was sent"}}')

    with listening(answer) as port:
        monkeypatch.setenv("HEADGATE_URL", f"http://127.0.0.1:{port}")
        refused = headgate.run("teams", "create", "first")
    assert refused.exit_code == 1
    assert "No API key was sent" in refused.stderr
    monkeypatch.delenv("HEADGATE_URL")
    assert headgate.json("teams", "list", "--json") == []


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "list"),
        ("teams", "list"),
        ("users", "list"),
        ("budgets", "list"),
        ("audit",),
    ],
    ids=" ".join,
)
def test_administration_asks_the_gateway_of_the_url(
    command: tuple[str, ...], headgate: Headgate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--url counts before $HEADGATE_URL."""
    seen: list[str] = []

    def answer(method: str, path: str, _headers: dict[str, str], _body: bytes) -> Answer:
        if path == "/health/live":
            return Answer(200, b'{"status": "live"}')
        seen.append(f"{method} {path.partition('?')[0]}")
        return Answer(200, json.dumps({"acts": [], f"{command[0]}": []}).encode())

    monkeypatch.setenv("HEADGATE_URL", "http://127.0.0.1:9")
    with listening(answer) as port:
        done = headgate.run(*command, "--url", f"http://127.0.0.1:{port}", "--json")
    assert (done.exit_code, seen) == (0, [f"GET /admin/{command[0]}"]), done.stderr


def test_gateway_on_the_state_folder_is_found_wherever_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its --port is in no settings of ours; where none runs, or another version, they say."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("HEADGATE_URL", raising=False)
    ours = msgspec.structs.replace(settings(tmp_path), server=ServerSettings(port=1))
    assert gateway_url(ours, None) == "http://127.0.0.1:1"
    file = make_run_folder(Path(ours.state_dir)) / RUNTIME_FILE
    Runtime(
        settings=msgspec.structs.replace(ours, server=ServerSettings(port=2)),
        database_url="",
        state_dir="",
        run_dir="",
        started_at=0.0,
    ).save(file)
    assert gateway_url(ours, None) == "http://127.0.0.1:2"
    assert gateway_url(ours, "http://elsewhere:3/v1") == "http://elsewhere:3"
    file.write_text("{}")
    assert gateway_url(ours, None) == "http://127.0.0.1:1"
