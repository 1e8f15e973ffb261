"""The pages: true figures, nothing for strangers, and text from outside is only ever text."""

import csv
import io
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy import select

from gateway.dashboard.forms import FORMS
from gateway.dashboard.machines import price_text
from gateway.dashboard.pages import PAGES
from gateway.ledger.database import open_engine
from gateway.ledger.key_store import NewKey, create_key
from gateway.ledger.money import short_usd
from gateway.ledger.records import Settlement
from gateway.ledger.report_query import GROUP_KEYS, TIME_KEYS
from gateway.ledger.repository import Repository
from gateway.ledger.tables import audit_log
from gateway.settings import Settings
from tests.gateway.dashboard import scenes
from tests.gateway.serving import Gateway, gateway, settings
from tests.gateway.test_pipeline import priced

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = "<script>alert(1)</script>"
NOBODY = "postgresql+asyncpg://me:secret@127.0.0.1:9/ledger"
PATHS = [page.path for page in PAGES if page.label]


async def page(served: Gateway, path: str, **headers: str) -> httpx.Response:
    """A page that must be there, with all that was settled."""
    assert await served.parts.ledger.flush()
    answer: httpx.Response = await served.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    return answer


async def send(served: Gateway, path: str, **fields: Any) -> httpx.Response:
    """A form, filled in."""
    answer: httpx.Response = await served.client.post(path, data=fields)
    return answer


async def acts(served: Gateway) -> list[tuple[str, str, str]]:
    """(actor, action, outcome) of the audit log, oldest first."""
    c = audit_log.c
    async with served.parts.engine.connect() as connection:
        found = await connection.execute(select(c.actor, c.action, c.outcome).order_by(c.id))
        return [tuple(row) for row in found]


async def test_pages_show_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    """A request stands on the overview, in the list, and by itself with decision and charges."""
    async with gateway(priced(tmp_path)) as served:
        empty = await page(served, "/")
        assert "No request yet" in empty.text
        answer = await served.chat("what is up?")
        row = (await served.settled(answer)).request
        request_id = answer.headers["x-headgate-request-id"]
        assert f"/request/{request_id}" in (await page(served, "/")).text
        listed = (await page(served, "/requests?backend=small")).text
        assert request_id in listed
        assert request_id not in (await page(served, "/requests?backend=base")).text
        assert request_id in (await page(served, "/requests?team=anonymous")).text
        long_ago = (await page(served, "/requests?since=&until=2020-01-01T10:30")).text
        assert request_id not in long_ago
        assert 'name="until" value="2020-01-01T10:30"' in long_ago
        month = (await page(served, "/requests?period=month")).text
        assert request_id in month
        assert re.search(r'name="since" value="\d{4}-\d\d-01T00:00"', month)
        one = (await page(served, f"/request/{request_id}")).text
        for fact in (row.rule, row.task, row.policy_sha256[:8], "no rule before it matched"):
            assert fact in one
        assert answer.headers["x-headgate-cost-usd"] in one
        assert "/1M" in one, "tokens × price, as it was computed"
        assert 'href="/requests?team=anonymous"' in one, "on to the team's others"
        costs = (await page(served, "/costs?group_by=team,backend")).text
        assert "/costs?group_by=key&amp;team=anonymous" in costs, "drills down"
        assert "/requests?team=anonymous&amp;backend=small" in costs, "to the requests"
        assert "anonymous · small" in costs
        for path in PATHS:
            assert "<main" in (await page(served, path)).text


@pytest.mark.parametrize(("usd", "shown"), [("0.1", "0.10"), ("2", "2.00"), ("0.123", "0.123")])
def test_machine_prices_have_cents_and_all_their_digits(usd: str, shown: str) -> None:
    """What a machine costs per hour reads as money and is not rounded."""
    assert price_text(Decimal(usd)) == shown


async def test_costs_by_every_key_have_their_page(tmp_path: Path) -> None:
    """Also by keys that no list of requests can be filtered by: those rows have no such link."""
    async with gateway(priced(tmp_path)) as served:
        await served.settled(
            await served.chat("what is up?", user="u", headers={"x-headgate-tags": "a=b"})
        )
        listed = {"team", "key", "user", "model", "backend", "rule", "task"}
        for key in (*GROUP_KEYS, "tag:a"):
            beside = "" if key in TIME_KEYS else "&compare=previous"
            shown = (await page(served, f"/costs?group_by={key}{beside}")).text
            assert "<tfoot>" in shown, key
            assert (">requests</a>" in shown) == (key in listed | set(TIME_KEYS)), key
        day = (await page(served, "/costs?group_by=day")).text
        behind = re.search(r'"(/requests\?since=\d{4}-\d\d-\d\d&amp;until=\d{4}-\d\d-\d\d)"', day)
        assert behind, "the requests of that day"
        assert "/request/" in (await page(served, behind[1].replace("&amp;", "&"))).text


async def test_costs_over_time_shows_the_dearest_users_and_the_rest(tmp_path: Path) -> None:
    """Of many users, or users and models, the chart names few; each hour's sum is the whole."""
    async with gateway(priced(tmp_path)) as served:
        row = await served.settled(await served.chat("what is up?"))
        for number in range(9):
            name = f"r{number}"
            (charge,) = (replace(one, request_id=name, cost_nano_usd=10**8 * 2**number)
                         for one in row.charges)  # fmt: skip
            request = replace(row.request, request_id=name, user=f"u{number}")
            await Repository(served.parts.engine).write(
                [Settlement(request=request, charges=(charge,))]
            )
        every = sum(10**8 * 2**number for number in range(9)) + row.charges[0].cost_nano_usd
        for groups, label in (("user", ""), ("user,model", f" · {row.request.model}")):
            saved = await page(served, f"/costs?group_by={groups}&period=24h&csv=over-time")
            head, *rows = csv.reader(io.StringIO(saved.text))
            assert head[1:] == [*(f"u{n}{label}" for n in range(4, 9)), "other"]
            sums = [sum(float(line[place]) for line in rows) for place in range(1, len(head))]
            assert [round(one * 1e9) for one in sums[:-1]] == [10**8 * 2**n for n in range(4, 9)]
            assert round(sum(sums) * 1e9) == every


async def test_routing_counts_requests_under_who_answered_them(tmp_path: Path) -> None:
    """A rung that lost has its cost and no request, also where judging costs nothing."""
    async with gateway(priced(tmp_path)) as served:
        row = await served.settled(await served.chat("what is up?"))
        lost = replace(row.charges[0], seq=1, kind="rung", backend="base")
        climbed = replace(row.request, request_id="climbed")
        charges = tuple(replace(one, request_id="climbed") for one in (*row.charges, lost))
        await Repository(served.parts.engine).write([Settlement(request=climbed, charges=charges)])
        found = (await page(served, "/routing")).text
        assert "1 (50 %)" in found, "escalated"
        table = list(csv.reader((await page(served, "/routing?csv=shares")).text.splitlines()))
        assert [line[1:3] for line in table[1:]] == [["2", "1"], ["0", "0"]]
        hours = list(csv.reader((await page(served, "/?csv=requests")).text.splitlines()))
        assert sum(float(cell) for line in hours[1:] for cell in line[1:]) == 2


async def test_every_chart_can_be_saved_as_its_numbers(tmp_path: Path) -> None:
    """Each link to a CSV file gives one, whose head is the table's."""
    async with gateway(priced(tmp_path)) as served:
        await served.settled(await served.chat("one"))
        await served.settled(await served.chat("one"))
        seen = 0
        for path in PATHS:
            text = (await page(served, path)).text
            for link in re.findall(r'class="csv" href="(\?[^"]*csv=[^"]+)"', text):
                answer = await page(served, path + link.replace("&amp;", "&"))
                assert answer.headers["content-type"].startswith("text/csv")
                assert "attachment" in answer.headers["content-disposition"]
                head, *rows = csv.reader(io.StringIO(answer.text))
                assert rows
                assert all(len(row) == len(head) for row in rows)
                seen += 1
            for chart in re.findall(r'<figure class="card chart" data-name="([^"]+)"', text):
                empty = f'data-name="{chart}"' in text and f"csv={chart}" not in text
                assert empty is False or "Nothing in this period" in text
        assert seen >= 7


async def test_text_from_outside_is_inert(tmp_path: Path) -> None:
    """Model names, users and tags with HTML are shown, not run; formulas in files are text."""
    async with gateway(priced(tmp_path)) as served:
        refused = await served.chat(model=HOSTILE)
        assert refused.status_code == 404
        formula = {"x-headgate-tags": 'a=<b>,cell==HYPERLINK("x")'}
        one = await served.chat(user=HOSTILE, headers=formula)
        paths = [
            *PATHS,
            "/costs?group_by=user",
            "/costs?group_by=model",
            f"/costs?team={HOSTILE}",
            f"/requests?backend={HOSTILE}",
            f"/request/{one.headers['x-headgate-request-id']}",
        ]
        for path in paths:
            text = (await page(served, path)).text
            assert HOSTILE not in text
            assert "<b>\n" not in text
        assert "&lt;script&gt;" in (await page(served, "/costs?group_by=model")).text
        saved = (await page(served, "/costs?group_by=tag:cell&csv=costs")).text
        assert "'=HYPERLINK" in saved
        assert "\n=HYPERLINK" not in saved


async def test_bad_question_gets_a_page_that_says_why(tmp_path: Path) -> None:
    """An impossible group, date or id is answered in words, in the page's own look."""
    async with gateway(priced(tmp_path)) as served:
        for path, status, words in (
            ("/costs?group_by=colour", 400, "colour"),
            ("/costs?since=yesterday-ish", 400, "no date"),
            ("/costs?since=2026-11-05&until=2026-11-01", 400, "not before"),
            ("/requests?since=whenever", 400, "no date"),
            ("/request/nobody", 404, "no request"),
            ("/request/no/body", 404, "no request"),
            ("/policies?name=nothing", 404, "no policy"),
        ):
            answer = await served.client.get(path)
            assert answer.status_code == status, path
            assert words in answer.text
            assert "<main" in answer.text


async def test_requests_go_on_where_a_page_ends(tmp_path: Path) -> None:
    """The link to older ones leads to every request once, with its filters kept."""
    async with gateway(scenes.settings_of(tmp_path)) as served:
        keys = await scenes.fill(served.parts.engine, "normal", now=1_790_000_000.0)
        served.client.headers["authorization"] = f"Bearer {keys['reports']}"
        seen: list[str] = []
        path: str | None = "/requests?backend=base"
        while path is not None:
            text = (await page(served, path)).text
            seen += re.findall(r"/request/([0-9a-f]{12})", text)
            older = re.search(r'href="(\?[^"]*before=\d+)">Older', text)
            path = None if older is None else "/requests" + older[1].replace("&amp;", "&")
        assert len(seen) == len(set(seen)) > 100


def _locked(folder: Path) -> Settings:
    return scenes.settings_of(folder)


async def _key(served: Gateway, *scopes: str, **more: Any) -> str:
    async with served.parts.engine.begin() as connection:
        wanted = NewKey(**{"team": "t", "scopes": scopes, **more})
        _, secret = await create_key(connection, wanted, now=1.0)
    return secret


async def test_key_opens_what_its_scopes_allow(tmp_path: Path) -> None:
    """Signing in sets a cookie that scripts cannot read; revoking the key ends it."""
    async with gateway(_locked(tmp_path)) as served:
        answer = await send(served, "/sign-in", key=await _key(served, "reports"))
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        text = (await page(served, "/")).text
        assert "Sign out" in text
        assert 'href="/policies"' not in text
        assert 'href="/budgets"' not in text
        assert (await send(served, "/sign-out")).status_code == 303
        served.client.cookies.clear()
        assert (await served.client.get("/", headers=BROWSER)).status_code == 302
        refused = await send(served, "/sign-in", key=await _key(served, "inference"))
        assert (refused.status_code, "opens no page" in refused.text) == (403, True)
        assert "set-cookie" not in refused.headers


ALLOWED = {
    "reports": {"/", "/costs", "/requests", "/routing", "/caches", "/backends", "/planner"},
    "admin": set(PATHS),
    "auditor": set(PATHS),
    "operator": set(PATHS),
    "team": {"/costs", "/requests", "/budgets"},
    "inference": set(),
}


async def _keys(served: Gateway) -> dict[str, str]:
    return {
        "reports": await _key(served, "reports"),
        "admin": await _key(served, "admin"),
        "auditor": await _key(served, "admin", role="auditor"),
        "operator": await _key(served, "admin", role="operator"),
        "team": await _key(served, "admin", role="team"),
        "inference": await _key(served, "inference"),
    }


async def test_pages_beyond_a_keys_scopes_are_refused_and_written_down(tmp_path: Path) -> None:
    """For every kind of key and page: shown and linked, or 403, unlinked and in the audit log."""
    async with gateway(_locked(tmp_path)) as served:
        for name, key in (await _keys(served)).items():
            served.client.headers["authorization"] = f"Bearer {key}"
            links: set[str] | None = None
            for path in PATHS:
                before = len(await acts(served))
                answer = await served.client.get(path)
                if path in ALLOWED[name]:
                    assert answer.status_code == 200, (name, path)
                    nav = answer.text.partition("<nav")[2].partition("</nav>")[0]
                    links = set(re.findall(r'href="([^"]+)"', nav))
                    assert links == ALLOWED[name], (name, path)
                elif path == "/" and ALLOWED[name]:
                    assert answer.headers["location"] in ALLOWED[name], "leads to what it may see"
                else:
                    assert answer.status_code == 403, (name, path)
                    assert "it needs" in answer.text
                    *_, newest = await acts(served)
                    assert newest[1:] == (f"GET {path}", "refused")
                    assert len(await acts(served)) == before + 1
            live = await served.client.get("/live") if name in ("team", "inference") else None
            assert live is None or live.status_code == 403


async def test_forms_beyond_a_keys_role_do_nothing(tmp_path: Path) -> None:
    """Every form, sent by keys that may not: 403, one row in the audit log, nothing changed."""
    may_write = {"admin": set(FORMS)}
    may_write["operator"] = {f for f in FORMS if f.permission[:4] in ("budg", "oper")}
    may_write["auditor"] = {f for f in FORMS if f.permission == "operations:read"}
    may_write["team"] = {f for f in FORMS if f.permission in ("keys:write", "budgets:write")}
    async with gateway(_locked(tmp_path)) as served:
        for name, key in (await _keys(served)).items():
            served.client.headers["authorization"] = f"Bearer {key}"
            for form in FORMS:
                answer = await send(served, form.path)
                *_, newest = await acts(served)
                if form in may_write.get(name, set()):
                    assert answer.status_code == 400, "it may, but has filled nothing in"
                else:
                    assert answer.status_code == 403, (name, form.path)
                    assert newest[1:] == (f"POST {form.path}", "refused")
        assert {outcome for _, _, outcome in await acts(served)} == {"refused"}


async def test_team_admins_see_and_change_only_their_team(tmp_path: Path) -> None:
    """Others' figures, requests and keys are out of reach, also by asking for them."""
    async with gateway(_locked(tmp_path)) as served:
        keys = await scenes.fill(served.parts.engine, "normal", now=1_790_000_000.0)
        served.client.headers["authorization"] = f"Bearer {keys['team']}"
        asked = "?since=2026-01-01&group_by=team"
        for path in (f"/costs{asked}", f"/costs{asked}&team=billing"):
            costs = (await page(served, path)).text
            assert "search" in costs
            assert "billing" not in costs.replace("team=billing", "")
        listed = (await page(served, "/requests?team=billing")).text
        rows = re.findall(r'</a></td>\s*<td class="name">([^<]*)</td>', listed)
        assert set(rows) == {"search"}
        own = (await page(served, "/budgets")).text
        assert "finance" not in own
        assert "operations" not in own
        refused = await send(served, "/keys/create", team="billing", scopes="inference")
        assert refused.status_code == 403
        assert "for team" in refused.text
        done = await send(served, "/keys/create", team="search", scopes="inference")
        assert "hg-" in done.text


async def test_operators_forms_do_what_the_commands_do(tmp_path: Path) -> None:
    """Keys, budgets, limits, pins, drains, caches: in force at once, and in the audit log."""
    async with gateway(_locked(tmp_path)) as served:
        served.client.headers["authorization"] = f"Bearer {await _key(served, 'admin')}"
        made = await send(served, "/keys/create", team="new", name="n", scopes="inference",
                          requests_per_minute="7", expires_in_days="2")  # fmt: skip
        secret = re.findall(r'class="secret">(hg-[^<]+)<', made.text)[0]
        caller = await served.parts.keys.authenticate(secret)
        assert caller is not None
        assert caller.limited[0].limits.requests_per_minute == 7
        key_id = caller.key_id
        assert secret not in (await page(served, "/budgets")).text, "shown this once"

        async def done(path: str, word: str, **fields: str) -> None:
            answer = await send(served, path, **fields)
            assert answer.status_code == 303, answer.text
            assert answer.headers["location"].endswith(f"?done={word}")
            assert 'role="status"' in (await page(served, answer.headers["location"])).text

        await done("/keys/limit", "limited", id=key_id, tokens_per_minute="99")
        await done("/teams/change", "team", team="new", weight="3", usd_per_minute="0.5")
        await done("/budgets/set", "budget", scope="team:new", limit_usd="5", window="day")
        assert "team:new" in (await page(served, "/budgets")).text
        await done("/budgets/remove", "removed", scope="team:new", window="day")
        await done("/backends/drain", "set", slot="drain.small", for_h="1")
        assert "small" in served.parts.overrides.effect.drained
        assert "Undrain" in (await page(served, "/backends")).text
        await done("/backends/undrain", "lifted", slot="drain.small")
        await done("/routing/pin", "set", slot="pin.backend", value="base", for_h="2", why="test")
        assert served.parts.overrides.effect.backend == "base"
        assert "pin.backend" in (await page(served, "/")).text, "the overview tells"
        await done("/routing/lift", "lifted", slot="pin.backend")
        await done("/caches/off", "set", slot="cache.semantic", for_h="1")
        assert served.parts.overrides.effect.cache == "exact"
        await done("/caches/on", "lifted", slot="cache.semantic")
        await done("/caches/clear", "cleared", team="new")
        rotated = await send(served, "/keys/rotate", id=key_id, overlap_h="0")
        assert "hg-" in rotated.text
        await done("/keys/revoke", "revoked", id=key_id)
        assert await served.parts.keys.authenticate(secret) is None
        log = [(action, outcome) for _, action, outcome in await acts(served)]
        assert [action for action, _ in log] == [
            "keys.create", "keys.limit", "teams.change", "budgets.set", "budgets.remove",
            "overrides.set", "overrides.lift", "overrides.set", "overrides.lift",
            "overrides.set", "overrides.lift", "cache.clear", "keys.rotate", "keys.revoke",
        ]  # fmt: skip
        assert {outcome for _, outcome in log} == {"done"}
        for path, fields, words in (
            ("/budgets/set", {"scope": "moon", "limit_usd": "1"}, "allowed"),
            ("/budgets/set", {"scope": "global", "limit_usd": "lots"}, "lots"),
            ("/keys/create", {"team": "x", "expires_in_days": "soon"}, "no number"),
            ("/keys/create", {"team": "x", "requests_per_minute": "inf"}, "no number"),
            ("/keys/limit", {"id": key_id, "tokens_per_minute": "nan"}, "no number"),
            ("/keys/limit", {"id": key_id, "concurrent_requests": "1.9"}, "no whole number"),
            (
                "/budgets/set",
                {
                    "scope": "global",
                    "limit_usd": "1",
                    "downgrade_percent": "12.7",
                    "downgrade_policy": "test",
                },
                "no whole number",
            ),
            ("/keys/revoke", {"id": "nobody"}, "no key"),
            ("/routing/pin", {"slot": "pin.backend", "value": HOSTILE}, "no backend"),
        ):
            refused = await send(served, path, **fields)
            assert refused.status_code in (400, 404), (path, fields)
            assert words in refused.text
            assert 'role="alert"' in refused.text
            assert HOSTILE not in refused.text


BETTER = """
[[rules]]
name = "short-ones"
when = { prompt_tokens = { max = 40 } }
route = "base"

[default]
route = "small"
"""


async def test_policy_is_checked_tried_and_activated(tmp_path: Path) -> None:
    """What is wrong is said; what it would have cost is shown; then it decides, once only."""
    async with gateway(_locked(tmp_path)) as served:
        inference = {"authorization": f"Bearer {await _key(served, 'inference')}"}
        for number in range(4):
            await served.settled(await served.chat(f"question {number}", headers=inference))
        served.client.headers["authorization"] = f"Bearer {await _key(served, 'admin')}"
        before = served.parts.book.get()
        bad = await send(served, "/policies/try", name="test", text='[default]\nroute = "moon"')
        assert "moon" in bad.text
        assert 'tag bad">error' in bad.text
        tried = await send(
            served, "/policies/try", name="test", text=BETTER, instead_of=before.sha256
        )
        assert tried.status_code == 200
        assert "On the newest 4 requests" in tried.text
        assert "base 100 %" in tried.text
        assert served.parts.book.get().sha256 == before.sha256, "trying changes nothing"
        wrong = await send(served, "/policies/activate", name="test", text="route = 1")
        assert wrong.status_code == 400
        fields = {"name": "test", "text": BETTER.replace("\n", "\r\n")}
        answer = await send(served, "/policies/activate", **fields, instead_of=before.sha256)
        assert answer.status_code == 303, answer.text
        assert served.parts.book.get().text == BETTER
        assert (await served.chat("hi", headers=inference)).headers[
            "x-headgate-rule"
        ] == "short-ones"
        late = await send(served, "/policies/activate", **fields, instead_of=before.sha256)
        assert late.status_code == 409
        assert "by now" in late.text
        shown = (await page(served, "/policies")).text
        assert "short-ones" in shown
        assert [outcome for _, action, outcome in await acts(served)
                if action == "policy.activate"] == ["failed", "done", "failed"]  # fmt: skip


async def test_strangers_are_asked_to_sign_in(tmp_path: Path) -> None:
    """With auth = "keys" pages redirect, live figures refuse, a wrong key is told so."""
    async with gateway(_locked(tmp_path)) as served:
        for path in PATHS:
            answer = await served.client.get(path, headers=BROWSER)
            assert (answer.status_code, answer.headers["location"]) == (302, "/sign-in")
            assert (await served.client.get(path)).status_code == 401, "scripts are told plainly"
        assert (await served.client.get("/live")).status_code == 401
        for form in FORMS:
            assert (await send(served, form.path)).status_code == 401
        wrong = await send(served, "/sign-in", key="hg-wrong")
        assert wrong.status_code == 401
        assert "unknown" in wrong.text
        assert "set-cookie" not in wrong.headers


async def test_form_of_another_site_is_refused(tmp_path: Path) -> None:
    """No form works from a page elsewhere, whatever the browser tells of it."""
    async with gateway(priced(tmp_path)) as served:
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site", "origin": "http://gateway.test"},
        ):
            for path in ("/sign-in", "/sign-out", *(form.path for form in FORMS)):
                answer = await served.client.post(path, data={"team": "x"}, headers=headers)
                assert answer.status_code == 403, (path, headers)
        assert await acts(served) == []


async def test_open_gateway_takes_forms_under_its_own_address_only(tmp_path: Path) -> None:
    """A foreign name that leads to this machine (DNS rebinding) is no address of its own."""
    async with gateway(priced(tmp_path)) as served:
        fields = {"scope": "global", "limit_usd": "5"}
        same = {"sec-fetch-site": "same-origin"}
        for host, status in (("evil.example", 403), ("localhost:8080", 303), ("127.0.0.1", 303)):
            headers = {**same, "host": host, "origin": f"http://{host}"}
            answer = await served.client.post("/budgets/set", data=fields, headers=headers)
            assert answer.status_code == status, host


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("0", "0"),
        ("0.000010361", "0.0000104"),
        ("0.5", "0.500"),
        ("12.3456", "12.35"),
        ("1234567.891", "1,234,567.89"),
        ("-0.00123456", "-0.00123"),
        ("0.00000005", "0.000000050"),
    ],
)
def test_dollars_keep_the_digits_that_say_something(usd: str, shown: str) -> None:
    """Cents from a dollar on, three significant digits below; no exponent, no float."""
    assert short_usd(usd) == shown


async def test_pages_and_paths_say_that_the_database_is_away(tmp_path: Path) -> None:
    """A server that takes no connection is no crash: a page with its menu, on a form as well."""
    async with gateway(settings(tmp_path)) as served:
        served.pipeline.parts = replace(served.parts, engine=open_engine(NOBODY))
        for path in ("/", "/requests", "/alerts", "/budgets"):
            answer = await served.client.get(path, headers={"accept": "text/html"})
            assert answer.status_code == 503, path
            assert "database does not answer" in answer.text
            assert 'href="/costs"' in answer.text
        refused = await send(served, "/budgets/set", scope="global", window="day", limit_usd="5")
        assert (refused.status_code, "database does not answer" in refused.text) == (503, True)
        for path in ("/reports/costs", "/admin/budgets", "/admin/keys", "/admin/audit"):
            plain = await served.client.get(path)
            assert (plain.status_code, plain.json()["error"]["code"]) == (
                503,
                "service_unavailable",
            ), path
