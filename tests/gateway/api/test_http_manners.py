"""What HTTP itself asks of a server, and odd but lawful input."""

from pathlib import Path
from urllib.parse import quote

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
