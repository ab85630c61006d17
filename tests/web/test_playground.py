"""The playground: what the page may do, that the package has it, and what it does in a real browser."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tomllib
from collections.abc import AsyncIterator
from html import unescape
from importlib import resources
from pathlib import Path

import httpx
import pytest

from apps.api.main import create_app
from apps.api.settings import Settings
from apps.api.web import playground
from tests import browser
from tests.browser import Browser, Page
from tests.fleet import API_KEY, NO_TLS, Fleet, Shared
from tests.proxy import Proxy
from tests.watch import until

ROOT = Path(__file__).parents[2]
FILE = resources.files("apps.api.web").joinpath("playground.html")
DIALECTS = ["/compat/code-server", "/compat/execute-server", "/compat/chat-server"]
IDLE = "!document.getElementById('send').disabled"
NAMES = "[...document.querySelectorAll('#events summary b')].map((name) => name.innerText)"
CHROMIUM = browser.program()

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")


def test_the_page_names_no_other_place_and_keeps_nothing() -> None:
    page = FILE.read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[a-z0-9]", page, re.IGNORECASE)
    strangers = (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "localStorage",
        "sessionStorage",
    )
    assert [word for word in (*strangers, "cookie", "indexedDB", " style=", " onclick=") if word in page] == []


async def test_the_page_comes_without_a_key_and_may_run_its_own_script_only(fleet: Fleet) -> None:
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        answer = await client.get(f"{fleet[0].url}/playground")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules["script-src"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert API_KEY not in answer.text


def test_what_the_server_writes_into_the_page_cannot_leave_its_attribute() -> None:
    found = bytes(playground.render(['"><script>', "/b"]).body).decode()
    [content] = re.findall(r'<meta name="dialects" content="(.*?)">', found)
    assert unescape(content) == '"><script> /b'
    assert found.count("<script>") == 1


async def test_an_operator_can_leave_the_page_out() -> None:
    app = create_app(Settings(_env_file=None, playground=False))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", verify=NO_TLS) as client:
        assert (await client.get("/playground")).status_code == 404


def test_the_package_has_the_page() -> None:
    # What hatchling packs: the files of its packages that git does not ignore.
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert packed["targets"]["wheel"]["packages"] == ["apps"]
    path = Path(str(FILE)).relative_to(ROOT)
    assert path.parts[0] == "apps"
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT).returncode != 0


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    async with browser.running(CHROMIUM) as started:
        yield started


@pytest.fixture
async def page(chromium: Browser, fleet: Fleet) -> AsyncIterator[Page]:
    """The page on the first instance, with a key. Afterwards: it has complained of nothing, and asked nobody else."""
    async with chromium.page(f"{fleet[0].url}/playground") as opened:
        await opened.type("key", API_KEY)
        yield opened
        assert opened.complaints == []
        urls = [request["url"] for request in opened.requests]
        assert [url for url in urls if not url.startswith((f"{fleet[0].url}/", "data:"))] == []
        assert [url for url in urls if API_KEY in url] == []


async def go_on(page: Page, shared: Shared) -> None:
    """What is sent next belongs to the session that tests share."""
    await page.type("session", await shared.of())


async def send(page: Page, prompt: str) -> None:
    await page.type("prompt", prompt)
    await page.click("#send")


async def ask(page: Page, prompt: str) -> str:
    """Send a prompt; returns the conversation at its end."""
    await send(page, prompt)
    await page.when(IDLE)
    return await page.text("#conversation")


@in_a_browser
async def test_a_prompt_streams_and_the_next_one_continues_its_session_and_raw_events_are_shown(page: Page) -> None:
    said = await ask(page, "stream 40 words every 20 ms")
    assert "word1 word2" in said
    assert said.count("word40") == 1
    names = await page.evaluate(NAMES)
    assert names[-1] == "done"
    assert {"init", "partial", "message", "result"} <= set(names)
    assert "succeeded" in await page.text("#state")
    session = await page.evaluate("document.getElementById('session').value")
    assert "1. stream 40 words every 20 ms" in await ask(page, "recall")
    assert await page.evaluate("document.getElementById('session').value") == session
    # Raw events are shown on demand.
    assert await page.evaluate("document.querySelector('#events pre').textContent") == ""
    assert await page.evaluate("document.querySelector('#events li:last-child pre').textContent") == ""
    await page.click("#events li:last-child summary")
    await page.when("document.querySelector('#events li:last-child pre').textContent.includes('\"succeeded\"')")


@in_a_browser
async def test_text_is_there_while_the_run_goes_on_and_interrupt_stops_it(page: Page, shared: Shared) -> None:
    await go_on(page, shared)
    await send(page, "hang after 3 words")
    await page.when("document.getElementById('conversation').innerText.includes('word3')")
    assert await page.evaluate("document.getElementById('send').disabled")
    await page.click("#interrupt")
    await page.when(IDLE)
    assert "interrupted" in await page.text("#state")


@in_a_browser
@pytest.mark.parametrize(("button", "outcome"), [("Allow", "the tool answered: made"), ("Deny", "not in my house")])
async def test_a_person_decides_about_a_tool(page: Page, shared: Shared, button: str, outcome: str) -> None:
    await go_on(page, shared)
    await page.choose("permission_mode", "default")
    await send(page, "run touch made.txt && echo made")
    await page.when("document.querySelector('#requests fieldset') !== null")
    assert "May the agent use Bash?" in await page.text("#requests")
    await page.evaluate("document.querySelector('#requests input[type=text]').value = 'not in my house'")
    await page.evaluate(
        f"[...document.querySelectorAll('#requests button')].find(b => b.innerText == '{button}').click()"
    )
    await page.when(IDLE)
    assert outcome in await page.text("#conversation")
    assert await page.text("#requests") == ""


@in_a_browser
async def test_a_person_answers_a_question(page: Page) -> None:
    await page.type("tools", "AskUserQuestion")
    await send(page, "ask Which colour? options red, green")
    await page.when("document.querySelector('#requests fieldset') !== null")
    await page.click("#requests input[value=green]")
    await page.click("#requests fieldset > button")
    await page.when(IDLE)
    assert "green" in (await page.text("#conversation")).splitlines()[-1]


@in_a_browser
async def test_what_an_agent_says_is_text_and_nothing_else(page: Page, shared: Shared) -> None:
    await go_on(page, shared)
    hostile = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    said = await ask(page, f"say {hostile}")
    assert said.count(hostile) == 2  # the prompt, and its echo
    for summary in range(await page.evaluate("document.querySelectorAll('#events summary').length")):
        await page.evaluate(f"document.querySelectorAll('#events summary')[{summary}].click()")
    await page.when("document.querySelector('#events li:last-child pre').textContent !== ''")
    assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert "Playground" in await page.evaluate("document.title")


@in_a_browser
async def test_files_are_uploaded_listed_and_downloaded(page: Page, fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "in put.txt").write_text("from the browser")
    await page.choose_files("upload", tmp_path / "in put.txt")
    await page.when("document.querySelectorAll('#files li').length === 1")
    session = await page.evaluate("document.getElementById('session').value")
    got = await fleet[1].client.get(f"/api/v1/sessions/{session}/files/in put.txt")
    assert got.text == "from the browser"
    await fleet[2].client.put(f"/api/v1/sessions/{session}/files/sub/made.txt", content=b"<img src=x onerror=alert(1)>")
    await page.click("#list")
    await page.when("document.querySelectorAll('#files li').length === 2")
    assert "sub/made.txt 28 bytes" in await page.text("#files")
    await page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    await page.click("#files li:last-child button")
    await until(lambda: asyncio.to_thread((tmp_path / "made.txt").exists))  # another program makes it
    assert (tmp_path / "made.txt").read_text() == "<img src=x onerror=alert(1)>"


@in_a_browser
async def test_a_session_is_followed_from_its_first_event(page: Page, shared: Shared) -> None:
    await go_on(page, shared)
    await page.click("#follow")
    await page.when(IDLE)
    assert shared.first in await page.text("#conversation")
    assert (await page.evaluate(NAMES))[-1] == "done"


@in_a_browser
async def test_a_wrong_key_and_a_wrong_field_are_told(chromium: Browser, fleet: Fleet) -> None:
    async with chromium.page(f"{fleet[0].url}/playground") as page:
        await ask(page, "say hello")
        assert "authentication_required" in await page.text("#state")
        await page.type("key", API_KEY)
        await page.type("more", '{"effort": "enormous"}')
        await ask(page, "say hello")
        assert "422" in await page.text("#state")
        assert "effort" in await page.text("#state")


@in_a_browser
@pytest.mark.parametrize("dialect", ["code-server", "execute-server", "chat-server"])
async def test_a_prompt_goes_through_an_older_server(page: Page, dialect: str) -> None:
    if dialect not in await page.evaluate("[...document.getElementById('surface').options].map((o) => o.value)"):
        pytest.skip("this server has no such dialect")
    await page.choose("surface", dialect)
    said = await ask(page, "stream 12 words")
    assert said.count("word12") == 1
    assert all(f"/compat/{dialect}/" in r["url"] for r in page.requests if r["method"] == "POST")


@in_a_browser
async def test_a_background_run_of_the_execute_server_is_cancelled(page: Page) -> None:
    await page.choose("surface", "execute-server")
    await send(page, "hang")
    await page.when("document.getElementById('state').innerText.startsWith('running')")
    await page.click("#interrupt")
    await page.when(IDLE)
    assert "cancelled" in await page.text("#state")


@in_a_browser
async def test_a_conversation_of_the_code_server_is_continued_and_interrupted(page: Page) -> None:
    await page.choose("surface", "code-server")
    await page.click("#conversation-mode")
    await ask(page, "remember my name is Ada")
    assert "1. remember my name is Ada" in await ask(page, "recall")
    await send(page, "hang after 3 words")
    await page.when("document.getElementById('conversation').innerText.includes('word3')")
    await page.click("#interrupt")
    await page.when(IDLE)
    assert "done" in await page.text("#state")


@in_a_browser
async def test_a_stream_that_is_cut_is_resumed_without_a_gap(chromium: Browser, shared: Shared) -> None:
    fleet = shared.fleet
    network = Proxy(int(fleet[0].url.rpartition(":")[2]))
    await network.start()
    try:
        async with chromium.page(f"http://127.0.0.1:{network.port}/playground") as page:
            await page.type("key", API_KEY)
            await go_on(page, shared)
            await send(page, "stream 60 words slowly")
            await page.when("document.getElementById('conversation').innerText.includes('word5')")
            assert network.cut()
            await page.when(IDLE)
            assert " ".join(f"word{number}" for number in range(1, 61)) in await page.text("#conversation")
            resumed = page.requests[-1]
            assert resumed["url"].endswith("/events")
            assert int(resumed["headers"]["Last-Event-ID"].partition("-")[0]) > 0
    finally:
        await network.close()


@in_a_browser
async def test_it_fits_a_narrow_screen_and_every_field_has_a_label(page: Page) -> None:
    await page.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
    await page.click("#options summary")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    fields = "[...document.querySelectorAll('input, select, textarea')]"
    assert await page.evaluate(f"{fields}.filter((field) => !field.labels.length).map((field) => field.id)") == []


@in_a_browser
async def test_dialects_that_a_server_has_not_are_not_offered(page: Page) -> None:
    offered = await page.evaluate("[...document.getElementById('surface').options].map((o) => o.value)")
    mounted = (await page.evaluate("document.querySelector('meta[name=dialects]').content")).split()
    assert set(mounted) <= set(DIALECTS)
    assert offered == ["native", *(path.rpartition("/")[2] for path in DIALECTS if path in mounted)]
