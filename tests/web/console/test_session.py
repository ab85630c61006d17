"""The page of one session, in a real browser."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Page
from tests.fleet import Fleet, Shared
from tests.watch import until
from tests.web.console.conftest import Console, says

JSON = {"Accept": "application/json"}
THREAD = "[role=log]"
IDLE = "document.querySelector('header .badge').innerText.trim() === 'Idle'"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


async def prompt(page: Page, text: str) -> None:
    """Write it, and press Enter."""
    await page.when("document.getElementById('prompt') !== null")
    await page.type("prompt", text)
    await page.key("Enter", 13)
    await page.when("document.getElementById('prompt').value === ''")


async def choose(page: Page, selector: str, beginning: str) -> None:
    """Click the first of these whose text begins so, as soon as it is there."""
    found = f"[...document.querySelectorAll({selector!r})].find((node) => node.innerText.startsWith({beginning!r}))"
    await page.when(f"{found} !== undefined")
    await page.evaluate(f"{found}.click()")


async def outcomes(page: Page, count: int) -> None:
    await page.when(f"document.querySelectorAll('.outcome').length === {count}")


async def test_a_prompt_streams_and_what_was_said_is_there_once(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(permission_mode="default")
    async with console(f"/sessions/{session}") as page:
        await page.when(says("Nothing has been said yet", THREAD))
        await prompt(page, "stream 40 words every 50 ms")
        # It is shown while it is written, not only when it is whole.
        await page.when("document.querySelector('.draft')?.innerText.includes('word3')")
        await outcomes(page, 1)
        said = await page.text(THREAD)
        assert said.count(" ".join(f"word{n}" for n in range(1, 41))) == 1
        assert said.count("stream 40 words every 50 ms") == 1
        assert await page.evaluate("document.querySelector('.draft') === null")
        await page.when("document.querySelector('.outcome .badge').innerText.includes('Succeeded')")
        await page.when(IDLE)
        # The timeline has the events, and one of them can be linked to.
        await page.when("document.querySelectorAll('.span-row').length >= 4")
        await page.click(".span-row:last-child")
        await page.when("document.querySelector('.span-body pre')?.innerText.includes('\"seq\"')")
        assert "event=" in await page.evaluate("location.search")


async def test_thinking_and_tools_are_folded_and_hold_what_was_done(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(permission_mode="bypassPermissions")
    await fleet[0].ask(session, "think about cheese then write notes.txt: one\ntwo then edit notes.txt: two => three")
    await fleet[0].ask(session, "delegate say I am the other one")
    async with console(f"/sessions/{session}") as page:
        await outcomes(page, 2)
        names = "[...document.querySelectorAll('.tool-name')].map((node) => node.innerText)"
        assert await page.evaluate(names) == ["Write", "Read", "Edit", "Agent"]
        assert await page.evaluate("document.querySelectorAll('details.tool[open], details.fold[open]').length") == 0
        assert await page.evaluate("document.querySelector('.tool-what').innerText") == "notes.txt"
        for tool in range(4):
            await page.evaluate(f"document.querySelectorAll('details.tool > summary')[{tool}].click()")
        await page.when("document.querySelector('.tool .line.added')?.innerText.includes('three')")
        await page.when("document.querySelector('.tool-children')?.innerText.includes('I am the other one')")
        await page.click("details.thinking > summary")
        await page.when("document.querySelector('details.thinking').innerText.includes('cheese')")


@pytest.mark.parametrize(("button", "outcome"), [("Allow", "the tool answered: made"), ("Deny", "not in my house")])
async def test_a_person_decides_about_a_tool_in_place(
    console: Console, shared: Shared, button: str, outcome: str
) -> None:
    session = await shared.of(permission_mode="default")
    async with console(f"/sessions/{session}") as page:
        await prompt(page, "run touch made.txt && echo made")
        await page.when("document.querySelector('section.request') !== null")
        assert "touch made.txt && echo made" in await page.text("section.request")
        if button == "Deny":
            await page.press("Deny …")
            await page.fill("What to tell the agent (optional)", "not in my house")
        await page.press(button)
        await page.when("document.querySelector('section.request') === null")
        await page.when(says(outcome, THREAD))
        await page.when(IDLE)


async def test_a_person_changes_what_a_tool_is_given(console: Console, shared: Shared) -> None:
    session = await shared.of(permission_mode="default")
    async with console(f"/sessions/{session}") as page:
        await prompt(page, "run touch first.txt")
        await page.press("Change the input")
        await page.fill("Input of the tool, as JSON", "{")
        await page.press("Allow")
        await page.when(says("This is not JSON", THREAD))
        await page.fill("Input of the tool, as JSON", '{"command": "echo another one"}')
        await page.press("Allow")
        await page.when(says("the tool answered: another one", THREAD))


async def test_a_person_answers_a_question_in_place(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session()
    async with console(f"/sessions/{session}") as page:
        await prompt(page, "ask Which colour? options red, green")
        await page.when("document.querySelector('section.request') !== null")
        await page.press("Answer")
        await page.when(says("Choose an answer, or write one.", THREAD))
        await page.evaluate("[...document.querySelectorAll('.option')].at(-1).click()")
        await page.press("Answer")
        await outcomes(page, 1)
        assert "→ green" in await page.text(THREAD)


async def test_a_run_is_interrupted_and_what_it_wrote_is_kept(console: Console, shared: Shared) -> None:
    session = await shared.of()
    async with console(f"/sessions/{session}") as page:
        await prompt(page, "stream 600 words slowly")
        await page.when("document.querySelector('.draft')?.innerText.includes('word3')")
        before = await page.evaluate("document.querySelectorAll('.outcome').length")
        await prompt(page, "say never")  # waits behind it
        await page.when(says("Queued", THREAD))
        await page.press("Cancel")
        await page.when("document.querySelector('.waiting') === null")
        await outcomes(page, before + 1)
        assert "word1 word2 word3" in await page.text(".draft")  # the one that is at work is not touched by that
        await page.press("Interrupt")
        await outcomes(page, before + 2)
        ended = "[...document.querySelectorAll('.outcome .badge')].map((badge) => badge.innerText.trim())"
        assert (await page.evaluate(ended))[before:] == ["Interrupted", "Interrupted"]
        await page.when(IDLE)
        assert (await page.text(THREAD)).count("word1 word2 word3") == 1


async def test_what_an_agent_says_is_read_as_markdown_and_its_html_as_text(console: Console, fleet: Fleet) -> None:
    hostile = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    link = "[a](javascript:alert(1)) [b](https://example.org) ![c](https://example.org/c.png)"
    session = await fleet[0].session(permission_mode="bypassPermissions")
    await fleet[0].ask(session, f"say **bold** {hostile} {link}")
    await fleet[0].ask(session, f"run echo '{hostile}'")
    async with console(f"/sessions/{session}") as page:
        await outcomes(page, 2)
        for summary in range(await page.evaluate("document.querySelectorAll('details.tool > summary').length")):
            await page.evaluate(f"document.querySelectorAll('details.tool > summary')[{summary}].click()")
        await page.when("document.querySelector('.tool-result') !== null")
        assert await page.evaluate("document.querySelector('.prose strong').innerText") == "bold"
        assert hostile in await page.text(THREAD)
        assert await page.evaluate("document.querySelectorAll('main img, main script, main iframe').length") == 0
        told = "(a) => [a.innerText, a.getAttribute('href'), a.rel]"
        links = await page.evaluate(f"[...document.querySelectorAll('.prose a')].map({told})")
        assert ["b", "https://example.org", "noopener noreferrer"] in links
        assert all(href is None or href.startswith("https://") for _, href, _ in links)
        assert "broken" not in await page.evaluate("document.title")


async def test_files_are_uploaded_shown_downloaded_and_deleted(console: Console, fleet: Fleet, tmp_path: Path) -> None:
    session = await fleet[0].session()
    (tmp_path / "in put.txt").write_text("from the browser")
    async with console(f"/sessions/{session}?tab=files") as page:
        await page.when(says("No files here"))
        await page.choose_files("upload", tmp_path / "in put.txt")
        await page.when("document.querySelectorAll('.file-list li').length === 1")
        got = await fleet[1].client.get(f"/api/v1/sessions/{session}/files/in put.txt")
        assert got.text == "from the browser"
        await fleet[2].client.put(f"/api/v1/sessions/{session}/files/sub/made.html", content=b"<b>made</b>")
        await page.press("Refresh")
        await page.when("document.querySelectorAll('.file-list li').length === 2")
        await choose(page, "button.file", "sub")
        await choose(page, "button.file", "made.html")
        await page.when(says("<b>made</b>", ".preview"))
        assert "path=sub%2Fmade.html" in await page.evaluate("location.search")
        await page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        await page.press("Download")
        await until(lambda: asyncio.to_thread((tmp_path / "made.html").exists))  # another program makes it
        assert (tmp_path / "made.html").read_text() == "<b>made</b>"
        await page.press("Delete sub/made.html")
        await page.press("Delete")
        await page.when(says("No files here") + " || " + "document.querySelectorAll('.file-list li').length === 1")
        assert (await fleet[0].client.get(f"/api/v1/sessions/{session}/files/sub/made.html")).status_code == 404


async def test_changes_are_shown_and_files_are_rewound_after_a_look(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(permission_mode="acceptEdits", enable_file_checkpointing=True)
    await fleet[0].ask(session, "write a.txt: one")
    await fleet[0].ask(session, "edit a.txt: one => two")
    async with console(f"/sessions/{session}?tab=changes") as page:
        await page.when("document.querySelector('.diff .line.removed')?.innerText.includes('one')")
        await page.when("document.querySelector('.diff .line.added')?.innerText.includes('two')")
        await page.press("Rewind")
        await page.when("document.querySelectorAll('.line-item').length === 2")
        edit = "[...document.querySelectorAll('.line-item')].find((one) => one.innerText.includes('edit'))"
        await page.evaluate(f"{edit}.querySelector('button').click()")
        await page.when("document.querySelector('dialog .line.added')?.innerText.includes('one')")
        assert (await fleet[1].client.get(f"/api/v1/sessions/{session}/files/a.txt")).text == "two"
        await page.press("Rewind")
        await page.when("document.querySelector('dialog') === null")
        assert (await fleet[1].client.get(f"/api/v1/sessions/{session}/files/a.txt")).text == "one"


async def test_a_session_is_forked_before_a_prompt_which_is_written_anew(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(title="The first")
    await fleet[0].ask(session, "remember my name is Ada")
    await fleet[0].ask(session, "say one")
    async with console(f"/sessions/{session}") as page:
        await outcomes(page, 2)
        await page.press("Fork before this prompt")
        await page.when("document.querySelector('dialog textarea').value === 'say one'")
        await page.fill("First prompt (optional)", "recall")
        await page.press("Fork")
        await page.when(f"!location.pathname.endsWith({session!r})")
        await page.when(says("you said:", THREAD) + " && " + IDLE)
        assert (await page.text(THREAD)).count("remember my name is Ada") == 2
        assert "say one" not in await page.text(THREAD)
        assert "The first (fork)" in await page.text("h1")


async def test_a_link_to_an_event_leads_to_it_and_older_events_are_loaded_when_asked(
    console: Console, fleet: Fleet
) -> None:
    session = await fleet[0].session(permission_mode="bypassPermissions")
    await fleet[0].ask(session, "remember the beginning then use 3 tools")
    commands = " & ".join(f"echo {n}" for n in range(1, 101))
    for _ in range(5):
        await fleet[0].ask(session, f"run at once {commands}")
    last = (await fleet[0].get(f"/sessions/{session}")).json()["last_seq"]
    assert last > 500
    async with console(f"/sessions/{session}?event={last}") as page:
        await page.when(f"document.querySelector('.span-row.chosen .span-seq')?.innerText === '{last}'")
        await page.when("document.querySelector('.entry.marked') !== null")
        await page.when("[...document.querySelectorAll('button')].some((b) => b.innerText === 'Show earlier events')")
        assert "remember the beginning" not in await page.text(THREAD)
        seen = await page.evaluate("document.querySelectorAll('details.tool').length")
        for _ in range(-(-(last - 400) // 200)):
            await page.press("Show earlier events")
            await page.when(f"document.querySelectorAll('details.tool').length > {seen}")
            seen = await page.evaluate("document.querySelectorAll('details.tool').length")
        await page.when(says("remember the beginning", THREAD))
    events: list[dict[str, Any]] = []
    place: str | None = None
    while place is not None or not events:
        params = {"limit": 200, **({"after": place} if place else {})}
        told = (await fleet[0].get(f"/sessions/{session}/events", params=params, headers=JSON)).json()
        events += told["data"]
        place = told["next_cursor"]
    blocks = [block for event in events if event["event"] == "message" for block in event["data"]["content"]]
    assert seen == sum(block["type"] == "tool_use" for block in blocks) > 250


async def test_pictures_are_sent_and_shown(console: Console, fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(base64.b64decode(PICTURE))
    session = await fleet[0].session()
    async with console(f"/sessions/{session}") as page:
        await page.when("document.getElementById('pictures') !== null")
        await page.choose_files("pictures", tmp_path / "dot.png")
        await page.when("document.querySelector('.attached img') !== null")
        await prompt(page, "what is this?")
        await outcomes(page, 1)
        await page.when("document.querySelector('.bubble img')?.naturalWidth === 1")
        assert "1 attachment(s) of type image/png" in await page.text(THREAD)


async def test_the_agent_is_changed_while_it_lives_and_its_options_are_shown(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(permission_mode="default", env={"TEAM": "blue"})
    async with console(f"/sessions/{session}?tab=setup") as page:
        await page.when(says('"TEAM": "***"'))
        await page.fill("Permission mode", "acceptEdits")
        await page.press("Change")
        await page.when(says("acceptEdits", ".session-head"))
        state = (await fleet[1].get(f"/sessions/{session}")).json()
        assert state["permission_mode"] == "acceptEdits"
        await page.press("Cost")
        await page.when(says("Tokens written"))
        await page.press("Ports")
        await page.when(says("No open ports"))


async def test_labels_are_changed_and_a_session_is_deleted(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(title="To go", tags=["old"])
    # What the page asks for at that moment may be of a session that is gone.
    async with console(f"/sessions/{session}", refused=("404", "410")) as page:
        await page.press("Title and labels")
        await page.fill("Title", "To go soon")
        await page.fill("Tags", "new, two")
        await page.fill("Metadata", "customer=42")
        await page.press("Save")
        await page.when(says("To go soon", "h1"))
        state = (await fleet[0].get(f"/sessions/{session}")).json()
        assert (state["title"], state["tags"], state["metadata"]) == ("To go soon", ["new", "two"], {"customer": "42"})
        await page.press("Delete")
        await page.press("Delete")
        await page.when("document.querySelector('h1')?.innerText === 'Sessions'")
    assert (await fleet[0].get(f"/sessions/{session}")).status_code == 404


async def test_a_session_that_is_not_there_is_told_with_its_code(console: Console) -> None:
    async with console("/sessions/5f1fd1f9-0000-0000-0000-000000000000", refused=("404",)) as page:
        await page.when(says("session_not_found"))
        assert await page.evaluate("/Request [0-9a-f]{32}/.test(document.querySelector('[role=alert]').innerText)")
