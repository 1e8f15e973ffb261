"""What HTTP itself asks of a server, and odd but lawful input."""

import gzip
import json
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.api.encodings import unpacked
from gateway.api.schemas import read_options
from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding
from gateway.settings import ServerSettings
from tests.gateway.serving import decode, gateway, settings


async def test_head_is_answered_where_get_is(tmp_path: Path) -> None:
    """Load balancers ask by HEAD; what is only posted to says so."""
    async with gateway(settings(tmp_path)) as served:
        for path in ("/health", "/health/live", "/v1/models", "/"):
            assert (await served.client.head(path)).status_code == 200, path
        assert (await served.client.head("/v1/chat/completions")).status_code == 405


async def test_wrong_methods_name_the_right_ones(tmp_path: Path) -> None:
    """405 comes with Allow, on every kind of path."""
    async with gateway(settings(tmp_path)) as served:
        for path, allowed in (
            ("/v1/chat/completions", "POST"),
            ("/v1/responses", "POST"),
            ("/health/live", "GET, HEAD"),
            ("/v1/files", "GET, HEAD, POST"),
            ("/v1/files/file-1", "GET, HEAD, DELETE"),
        ):
            answer = await served.client.put(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path


async def test_a_missing_key_names_the_scheme(tmp_path: Path) -> None:
    """401 comes with WWW-Authenticate, as RFC 9110 asks."""
    async with gateway(settings(tmp_path, server=ServerSettings(auth="keys"))) as served:
        for answer in (await served.chat(), await served.client.get("/v1/models")):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_request_id_with_slashes_is_found(tmp_path: Path) -> None:
    """Whatever x-request-id may hold, /requests/{id} takes."""
    async with gateway(settings(tmp_path)) as served:
        for request_id in ("job/7?part=1", "a#b", "%2F"):
            answer = await served.chat(headers={"x-request-id": request_id})
            assert answer.headers["x-request-id"] == request_id
            found = await served.client.get(f"/requests/{quote(request_id, safe='')}")
            assert decode(found)["request"]["request_id"] == request_id


async def test_tags_are_read_as_utf_8(tmp_path: Path) -> None:
    """What a client writes in a header is what a report shows."""
    async with gateway(settings(tmp_path)) as served:
        for sent, kept in (("gruß=ö".encode(), "ö"), (b"gru\xdf=\xf6", "ö")):
            answer = await served.chat(headers={b"x-headgate-tags": sent})
            assert (await served.settled(answer)).request.tags == {"gruß": kept}


async def test_report_errors_name_the_parameter(tmp_path: Path) -> None:
    """A wrong question says which part of it is wrong."""
    async with gateway(settings(tmp_path)) as served:
        for query, param in (
            ("group_by=colour", "group_by"),
            ("group_by=team,team", "group_by"),
            ("since=soon", "since"),
            ("until=99999-01-01", "until"),
            ("tz=Mars", "tz"),
            ("idle_by=luck", "idle_by"),
        ):
            answer = await served.client.get(f"/reports/costs?{query}")
            assert (answer.status_code, decode(answer)["error"]["param"]) == (400, param)


async def test_browsers_may_ask_from_listed_origins_only(tmp_path: Path) -> None:
    """Preflight and answer name a listed origin; none is named unless the operator says so."""
    page = {"origin": "https://app.example.com"}
    asks = {**page, "access-control-request-method": "POST"}
    path = "/v1/chat/completions"
    listed = ServerSettings(cors_origins=["https://app.example.com"])
    async with gateway(settings(tmp_path, server=listed)) as served:
        before = await served.client.options(path, headers=asks)
        assert before.status_code in (200, 204)
        for answer in (before, await served.chat(headers=page)):
            assert answer.headers["access-control-allow-origin"] == page["origin"]
        other = await served.chat(headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in other.headers
    async with gateway(settings(tmp_path)) as served:
        assert "access-control-allow-origin" not in (await served.chat(headers=page)).headers
        assert (await served.client.options(path, headers=asks)).status_code == 405


def _bare_deflate(data: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packing.compress(data) + packing.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("identity", b"hello " * 40),
        ("gzip", gzip.compress(b"hello " * 40, mtime=0)),
        ("X-GZIP", 2 * gzip.compress(b"hello " * 20, mtime=0)),
        ("deflate", zlib.compress(b"hello " * 40)),
        ("deflate", _bare_deflate(b"hello " * 40)),
    ],
)
def test_packed_bodies_are_read_up_to_their_bound(encoding: str, packed: bytes) -> None:
    """Whoever packs them, the same bytes come out; one byte too many is refused."""
    assert unpacked(packed, encoding, 240) == b"hello " * 40
    if encoding != "identity":
        with pytest.raises(RequestTooLarge, match="larger than 239 bytes"):
            unpacked(packed, encoding, 239)


def test_what_is_not_packed_as_it_says_is_named() -> None:
    """Rubbish, a body cut short, an encoding that we do not know."""
    packed = gzip.compress(b"hello")
    for wrong in (b"hello", packed[:-4], packed[:3], packed + b"hello"):
        with pytest.raises(InvalidRequest, match="not valid gzip"):
            unpacked(wrong, "gzip", 100)
    for other in ("br", "zstd", "gzip, gzip"):
        with pytest.raises(UnsupportedEncoding, match="allowed: gzip, deflate"):
            unpacked(packed, other, 100)


async def test_every_path_with_a_body_takes_gzip(tmp_path: Path) -> None:
    """Chats, responses, explanations, administration; a bomb gets 413 before it fills memory."""
    limited = ServerSettings(max_body_bytes=10_000)
    chat = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    async with gateway(settings(tmp_path, server=limited)) as served:
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/v1/responses", {"model": "auto", "input": "hello"}),
            ("/route/explain", chat),
            ("/admin/teams", {"name": "search"}),
        ):
            packed = gzip.compress(json.dumps(body).encode())
            answer = await served.post(path, packed, **{"content-encoding": "gzip"})
            assert answer.status_code in (200, 201), (path, answer.text)
            bomb = gzip.compress(bytes(10_000_000))
            assert len(bomb) < 10_000
            answer = await served.post(path, bomb, **{"content-encoding": "gzip"})
            found = (answer.status_code, decode(answer)["error"]["code"])
            assert found == (413, "request_too_large"), path
            answer = await served.post(path, packed, **{"content-encoding": "br"})
            assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("rubbish", False),
    ],
)
def test_malformed_traceparent_breaks_nothing(sent: str, passed_on: bool) -> None:
    """It is left out, so that a new trace begins; what is right goes on as it came."""
    assert read_options({"traceparent": sent}).traceparent == (sent if passed_on else None)


@pytest.mark.parametrize(
    ("parent", "state", "passed_on"),
    [
        (True, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True),
        (False, "congo=t61rcWkgMzE", False),
        (True, "congo=\r\nx-other: 1", False),
        (True, "c=" + "x" * 4096, False),
    ],
)
def test_tracestate_goes_on_beside_its_traceparent_only(
    parent: bool, state: str, passed_on: bool
) -> None:
    """Vendors' words reach the backend with their trace; alone they mean nothing."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    sent = {"traceparent": trace if parent else "rubbish", "tracestate": state}
    expected = {"traceparent": trace} if parent else {}
    assert read_options(sent).passed_on() == expected | ({"tracestate": state} if passed_on else {})
