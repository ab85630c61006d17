"""The console in bad company: what agents and other people of the tenant write, and a network that comes and goes."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.balancer import Balancer
from tests.browser import Browser, Page
from tests.fleet import API_KEY, Fleet
from tests.web.console.conftest import Console, says, sign_in, visit

THREAD = "[role=log]"
HTML = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
TURNED = "safe\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe"
FOREIGN = "document.querySelectorAll('main :is(img, script, iframe, object, embed, base, form[action])').length"


async def harmless(page: Page) -> None:
    assert await page.evaluate(FOREIGN) == 0
    assert await page.evaluate("document.title") != "broken"


async def test_titles_labels_and_names_of_files_are_text(console: Console, fleet: Fleet) -> None:
    name = f"{HTML.replace('/', '-')}.txt"
    session = await fleet[0].session(title=f"{HTML} {TURNED}", tags=["<b>tag</b>"], metadata={"of": HTML})
    for file in (name, TURNED):
        put = await fleet[0].client.put(f"/api/v1/sessions/{session}/files/{quote(file)}", content=b"<b>in it</b>")
        assert put.status_code in (200, 201)
    async with console("/sessions") as page:
        await page.when(says(HTML, "tbody") + " && " + says("⟨U+202E⟩gnp.exe", "tbody") + " && " + says("<b>tag</b>"))
        await harmless(page)
        await visit(page, f"/sessions/{session}?tab=files")
        await page.when(says(name, ".file-list") + " && " + says("safe⟨U+202E⟩gnp.exe", ".file-list"))
        assert HTML in await page.text("h1")
        chosen = "[...document.querySelectorAll('button.file')].find((one) => one.innerText.startsWith('<img'))"
        await page.evaluate(f"{chosen}.click()")
        await page.when(says("<b>in it</b>", ".preview"))
        await harmless(page)
        for button in ("Title and labels", "Fork"):
            await page.press(button)
            await page.when("document.querySelector('dialog[open]') !== null")
            await harmless(page)
            await page.key("Escape", 27)
            await page.when("document.querySelector('dialog') === null")


async def test_a_picture_that_could_run_something_is_shown_as_text(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session()
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" onload="document.title=\'broken\'">{HTML}</svg>'
    for file, content in (("a.svg", svg), ("b.html", HTML), ("c.png", HTML)):
        await fleet[0].client.put(f"/api/v1/sessions/{session}/files/{file}", content=content.encode())
    async with console(f"/sessions/{session}?tab=files&path=a.svg") as page:
        await page.when(says("onload=", ".preview"))
        await harmless(page)
        await visit(page, f"/sessions/{session}?tab=files&path=b.html")
        await page.when(says("onerror=", ".preview"))
        await harmless(page)
        await visit(page, f"/sessions/{session}?tab=files&path=c.png")  # which is none
        await page.when("document.querySelector('.preview img') !== null")
        assert await page.evaluate("document.title") != "broken"


async def test_who_decides_sees_all_that_a_tool_is_given(console: Console, fleet: Fleet) -> None:
    hidden, turned = [await fleet[n].session(permission_mode="default") for n in range(2)]
    given = json.dumps({"command": "touch all.txt", "run_in_background": True, "description": "Only looks"})
    await fleet[0].prompt(hidden, f"use tool Bash {given}")
    await fleet[1].prompt(turned, f"use tool Write {json.dumps({'file_path': TURNED, 'content': TURNED})}")
    async with console(f"/sessions/{hidden}") as page:
        await page.when(says("touch all.txt", "section.request"))
        asked = await page.text("section.request")
        assert "Bash" in asked
        assert '"run_in_background": true' in asked
        assert "Only looks" in asked
        await visit(page, f"/sessions/{turned}")
        await page.when(says("Write", "section.request"))
        assert (await page.text("section.request")).count("safe⟨U+202E⟩gnp.exe") == 2


@pytest.mark.parametrize(
    ("what", "size"),
    [("underlines", 60_000), ("quotes", 20_000), ("numbers", 15_000), ("brackets", 60_000)],
)
async def test_a_text_that_is_hard_to_read_does_not_stop_the_page(
    console: Console, fleet: Fleet, what: str, size: int
) -> None:
    text = {"underlines": "_a", "quotes": ">", "numbers": "1. ", "brackets": "["}[what] * size
    session = await fleet[0].session()
    await fleet[0].ask(session, f"say first\n\n{text} the end")
    async with console(f"/sessions/{session}") as page:
        await page.when("document.querySelector('.outcome') !== null")
        await page.when(says("the end", ".of-text"))
        await page.press("Usage")
        await page.when("document.querySelector('h1')?.innerText === 'Usage'")


async def test_a_link_with_dots_leads_nowhere_else(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session()
    for path in ("../../../whoami", "a/../../../../limits", "./x", "..%2f..%2f..%2fwhoami"):
        async with console(refused=("400", "404", "422")) as page:
            asked = len(page.requests)
            await visit(page, f"/sessions/{session}?tab=files&path={quote(path, safe='')}")
            await page.when("document.querySelector('.preview .failure, .preview [role=alert]') !== null")
            urls = [request["url"] for request in page.requests[asked:]]
            assert [url for url in urls if url.endswith(("/whoami", "/limits"))] == []


async def test_a_page_without_a_network_says_so_and_goes_on_with_what_it_missed(
    chromium: Browser, balancer: Balancer, fleet: Fleet
) -> None:
    session = await fleet[0].session()
    async with chromium.page(f"{balancer.url}/console/sessions/{session}") as page:
        await sign_in(page, API_KEY)
        await page.when(says("Live", ".session-head"))
        cut = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await page.call("Network.emulateNetworkConditions", offline=True, **cut)
        await balancer.drop()
        await page.when(says("Reconnecting", ".session-head"))
        await page.type("prompt", "say never sent")
        await page.key("Enter", 13)
        await page.when(says("The server cannot be reached.", ".composer"))
        assert await page.evaluate("document.getElementById('prompt').value") == "say never sent"
        await fleet[0].ask(session, "say while you were away")
        await page.call("Network.emulateNetworkConditions", offline=False, **cut)
        await page.when(says("Live", ".session-head") + " && " + says("while you were away", THREAD))
        assert (await page.text(THREAD)).count("[demo model, scripted] while you were away") == 1


async def test_back_and_forward_lead_through_pages_as_they_were(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(title="To go back to")
    async with console("/sessions?search=go+back") as page:
        await page.when(says("To go back to", "tbody"))
        await page.evaluate("document.querySelector('tbody a').click()")
        await page.when(says("To go back to", "h1"))
        await page.press("Files")
        await page.press("Delete")
        await page.when("document.querySelector('dialog[open]') !== null")
        await page.evaluate("history.back()")
        await page.when("document.querySelector('h1')?.innerText === 'Sessions'")
        await page.when(says("To go back to", "tbody") + " && document.querySelector('dialog') === null")
        assert await page.evaluate("document.querySelector('input[type=search]').value") == "go back"
        await page.evaluate("history.forward()")
        await page.when(says("To go back to", "h1") + " && location.search === '?tab=files'")
        await page.when("document.querySelector('.files') !== null")
    assert (await fleet[0].get(f"/sessions/{session}")).status_code == 200


async def test_two_tabs_show_the_same_session_and_one_answer_counts(
    chromium: Browser, balancer: Balancer, fleet: Fleet
) -> None:
    session = await fleet[0].session(permission_mode="default")
    path = f"{balancer.url}/console/sessions/{session}"
    async with chromium.page(path) as one, chromium.page(path) as other:
        for page in (one, other):
            await page.call("Page.bringToFront")  # what nobody sees is not drawn
            await sign_in(page, API_KEY)
            await page.when(says("Live", ".session-head"))
        await other.type("prompt", "run touch made.txt && echo made")
        await other.key("Enter", 13)
        for page in (one, other):
            await page.call("Page.bringToFront")
            await page.when("document.querySelector('section.request') !== null")
        await other.press("Allow")
        for page in (one, other):
            await page.call("Page.bringToFront")
            await page.when("document.querySelector('section.request') === null")
            await page.when(says("the tool answered: made", THREAD))
            assert await page.evaluate("document.querySelectorAll('.resolved').length") == 1
