"""The pages: true figures, nothing for strangers, and text from outside is only ever text."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.dashboard.figures import bars, short_usd
from gateway.ledger.key_store import NewKey, create_key
from gateway.settings import ServerSettings
from tests.gateway.serving import Gateway, gateway, settings
from tests.gateway.test_pipeline import priced

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = "<script>alert(1)</script>"


async def page(served: Gateway, path: str, **headers: str) -> httpx.Response:
    """A page that must be there."""
    answer: httpx.Response = await served.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    return answer


async def test_pages_show_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    """A request stands on the overview, in the list, and by itself with decision and charges."""
    async with gateway(priced(tmp_path)) as served:
        empty = await page(served, "/")
        assert "No request yet" in empty.text
        answer = await served.chat("what is up?")
        row = (await served.settled(answer)).request
        request_id = answer.headers["x-headgate-request-id"]
        assert f"/requests/{request_id}/page" in (await page(served, "/")).text
        listed = (await page(served, "/requests?backend=small")).text
        assert request_id in listed
        assert request_id not in (await page(served, "/requests?backend=base")).text
        one = (await page(served, f"/requests/{request_id}/page")).text
        for fact in (row.rule, row.task, row.policy_sha256[:8], "no rule before it matched"):
            assert fact in one
        (charge,) = (await served.settled(answer)).charges
        assert f">{charge.cost_nano_usd}<" in one
        costs = (await page(served, "/costs?group_by=team,backend")).text
        assert "anonymous · small" in costs
        assert "small" in (await page(served, "/backends")).text


async def test_text_from_outside_is_inert(tmp_path: Path) -> None:
    """Model names, users and tags with HTML are shown, not run."""
    async with gateway(priced(tmp_path)) as served:
        refused = await served.chat(model=HOSTILE)
        assert refused.status_code == 404
        one = await served.chat(user=HOSTILE, headers={"x-headgate-tags": "a=<b>"})
        paths = [
            "/",
            "/requests",
            "/costs?group_by=user",
            "/costs?group_by=model",
            "/requests?backend=" + HOSTILE,
            f"/requests/{one.headers['x-headgate-request-id']}/page",
        ]
        for path in paths:
            text = (await page(served, path)).text
            assert HOSTILE not in text
            assert "<b>\n" not in text
        assert "&lt;script&gt;" in (await page(served, "/costs?group_by=model")).text


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/costs?group_by=colour", 400, "colour"),
        ("/costs?since=yesterday-ish", 400, "no date"),
        ("/requests/nobody/page", 404, "no request"),
    ],
)
async def test_bad_question_gets_a_page_that_says_why(
    tmp_path: Path, path: str, status: int, words: str
) -> None:
    """An impossible group, date or id is answered in words, in the page's own look."""
    async with gateway(priced(tmp_path)) as served:
        answer = await served.client.get(path)
        assert answer.status_code == status
        assert words in answer.text
        assert "<main" in answer.text


def _locked(folder: Path) -> Any:
    from msgspec.structs import replace

    return replace(settings(folder, *priced(folder).backends), server=ServerSettings(auth="keys"))


async def _key(served: Gateway, *scopes: str) -> str:
    async with served.parts.engine.begin() as connection:
        wanted = NewKey(team="t", scopes=scopes)
        _, secret = await create_key(connection, wanted, now=1.0)
    return secret


async def test_key_opens_what_its_scopes_allow(tmp_path: Path) -> None:
    """Signing in sets a cookie that scripts cannot read; a key without reports sees no figure."""
    async with gateway(_locked(tmp_path)) as served:
        answer = await served.client.post("/sign-in", data={"key": await _key(served, "reports")})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "Sign out" in (await page(served, "/")).text
        out = await served.client.post("/sign-out")
        assert out.status_code == 303
        served.client.cookies.clear()
        assert (await served.client.get("/", headers=BROWSER)).status_code == 302
        await served.client.post("/sign-in", data={"key": await _key(served, "inference")})
        refused = await served.client.get("/costs")
        assert refused.status_code == 403
        assert "scope" in refused.text


async def test_strangers_are_asked_to_sign_in(tmp_path: Path) -> None:
    """With auth = "keys" pages redirect, live figures refuse, a wrong key is told so."""
    async with gateway(_locked(tmp_path)) as served:
        for path in ("/", "/costs", "/requests", "/backends"):
            answer = await served.client.get(path, headers=BROWSER)
            assert (answer.status_code, answer.headers["location"]) == (302, "/sign-in")
            assert (await served.client.get(path)).status_code == 401, "scripts are told plainly"
        assert (await served.client.get("/live")).status_code == 401
        wrong = await served.client.post("/sign-in", data={"key": "hg-wrong"})
        assert wrong.status_code == 401
        assert "unknown" in wrong.text
        assert "set-cookie" not in wrong.headers


async def test_form_of_another_site_is_refused(tmp_path: Path) -> None:
    """Neither signing in nor out works from a page elsewhere."""
    async with gateway(_locked(tmp_path)) as served:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            for path in ("/sign-in", "/sign-out"):
                answer = await served.client.post(path, data={"key": "x"}, headers=headers)
                assert answer.status_code == 403


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("0", "0"),
        ("0.000010361", "0.0000104"),
        ("0.5", "0.500"),
        ("12.3456", "12.35"),
        ("1234567.891", "1234567.89"),
        ("-0.00123456", "-0.00123"),
    ],
)
def test_dollars_keep_the_digits_that_say_something(usd: str, shown: str) -> None:
    """Cents from a dollar on, three significant digits below; no exponent, no float."""
    assert short_usd(usd) == shown


def test_bars_are_shares_of_the_largest() -> None:
    """The longest is 100, nothing is below 0, no rows are no bars."""
    rows = [{"team": "a", "cost_usd": "2"}, {"team": "b", "cost_usd": "0.5"}]
    assert [bar["share"] for bar in bars(rows, ["team"], "cost_usd")] == [100.0, 25.0]
    assert bars([], ["team"], "cost_usd") == []
    assert bars([{"team": "a", "cost_usd": "0"}], ["team"], "cost_usd")[0]["share"] == 0.0
