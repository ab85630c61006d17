"""How the console looks: to who reads by ear or by keyboard, in light and dark, on narrow and wide screens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Page
from tests.fleet import Fleet
from tests.web.console.conftest import Console, says, visit

AXE = (Path(__file__).parents[2] / "vendor" / "axe.min.js").read_text(encoding="utf-8")

# Rules of WCAG 2.2 at the levels A and AA, and what axe calls the best practice.
RUN = "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"

NARROW = 360

PAGES = {
    "/sessions": "table",
    "/runs": "table",
    "/inbox": "h1",
    "/new": ".facts",
    "/presets": "table, .empty",
    "/schedules": "table, .empty",
    "/webhooks": "table, .empty",
    "/usage": ".figure",
    "/key": ".facts",
    "/fleet": "table",
    "/tenants": "table",
    "/tenants/default": "section[aria-label=Limits] form",
    "/keys": "table",
    "/audit": "table",
}
"""Each with what is there once it is loaded."""

TABS = ("", "timeline", "files&path=report.md", "changes", "checkpoints", "setup", "ports", "spent")


async def violations(page: Page) -> list[str]:
    found: list[dict[str, Any]] = json.loads(await page.evaluate(RUN))
    return [
        f"{one['id']}: {node['target']} {node.get('failureSummary', '')} {node['html'][:200]}"
        for one in found
        for node in one["nodes"]
    ]


async def in_light_and_dark(page: Page, where: str) -> list[str]:
    wrong = []
    for shade in ("light", "dark"):
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": shade}])
        wrong += [f"{where} in {shade}: {one}" for one in await violations(page)]
    return wrong


async def narrow(page: Page, where: str) -> list[str]:
    """Whatever makes the page scroll sideways, or stands out of it."""
    await page.call("Emulation.setDeviceMetricsOverride", width=NARROW, height=740, deviceScaleFactor=1, mobile=True)
    wide = await page.evaluate(f"""[document.documentElement, document.body, document.querySelector('main')]
      .filter((node) => node.scrollWidth > {NARROW}).map((node) => node.tagName)""")
    await page.call("Emulation.clearDeviceMetricsOverride")
    return [f"{where}: {tag}" for tag in wide]


@pytest.fixture
async def session(fleet: Fleet) -> str:
    """One with everything that is shown of one, and something to answer."""
    made = await fleet[0].session(
        title="A long title with aVeryLongWordThatDoesNotBreakByItself" * 2,
        tags=["one", "two"],
        permission_mode="acceptEdits",
        enable_file_checkpointing=True,
    )
    words = (
        "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- one\n\n> quoted\n\n```\ncode\n```\n[link](https://example.org)"
    )
    await fleet[0].ask(made, f"think about cheese then write report.md: one then run ls -la then say {words}")
    await fleet[0].ask(made, "edit report.md: one => two")
    await fleet[0].prompt(made, "ask Which colour? options red, green")
    return made


async def test_every_page_is_well_for_who_reads_by_ear_in_light_and_dark_and_fits_a_narrow_screen(
    console: Console, fleet: Fleet
) -> None:
    await fleet[0].ask(await fleet[0].session(title="One to be listed"), "say hello")  # a session, and a run
    wrong = []
    async with console("/sessions", refused=("404",)) as page:  # the tenant has no model credential of its own
        await page.evaluate(AXE)
        for path, there in PAGES.items():
            await visit(page, path)
            await page.when(f"document.querySelector({there!r}) !== null")
            wrong += await in_light_and_dark(page, path) + await narrow(page, path)
    assert wrong == [], "\n".join(wrong)


async def test_a_session_is_well_for_who_reads_by_ear_in_light_and_dark_and_fits_a_narrow_screen(
    console: Console, session: str
) -> None:
    wrong = []
    async with console(f"/sessions/{session}") as page:
        await page.evaluate(AXE)
        await page.when("document.querySelector('section.request') !== null")
        await page.evaluate("document.querySelectorAll('details.tool > summary').forEach((line) => line.click())")
        for tab in TABS:
            await visit(page, f"/sessions/{session}?tab={tab}")
            await page.when("document.querySelector('[role=tabpanel] > *') !== null")
            await page.when("document.querySelector('[role=tabpanel] .loading') === null")
            wrong += await in_light_and_dark(page, tab or "chat") + await narrow(page, tab or "chat")
        for button in ("Fork", "Title and labels", "Delete"):
            await page.press(button)
            await page.when("document.querySelector('dialog[open]') !== null")
            wrong += await in_light_and_dark(page, button) + await narrow(page, button)
            await page.key("Escape", 27)
            await page.when("document.querySelector('dialog') === null")
    assert wrong == [], "\n".join(wrong)


async def test_what_is_not_well_is_found(console: Console) -> None:
    async with console("/sessions") as page:
        await page.evaluate(AXE)
        await page.evaluate("""document.querySelector('main').append(
          Object.assign(document.createElement('button'), {className: 'wrong'}))""")
        assert any("button-name" in one for one in await violations(page))
        await page.evaluate("""Object.assign(document.querySelector('.wrong').style, {width: '500px'})""")
        assert await narrow(page, "here") != []


async def test_the_sign_in_is_well_for_who_reads_by_ear_and_fits_a_narrow_screen(console: Console) -> None:
    async with console("/sessions") as page:
        await page.evaluate(AXE)
        await page.press("Sign out")
        await page.when("document.getElementById('api-key') !== null")
        narrowed = await page.evaluate(f"document.documentElement.scrollWidth <= innerWidth ? [] : ['{NARROW}']")
        assert await in_light_and_dark(page, "sign-in") + narrowed == []


async def test_a_session_is_started_and_answered_by_keyboard_alone(console: Console) -> None:
    async with console("/new") as page:
        # The skip link is the first stop, and leads past the menu.
        await page.evaluate("document.activeElement.blur()")
        await page.key("Tab", 9)
        assert await page.evaluate("document.activeElement.innerText") == "Skip to the content"
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
        assert await page.evaluate("document.activeElement.id") == "main"
        await page.key("Tab", 9)
        assert await page.evaluate("document.activeElement.labels[0].innerText") == "Prompt"
        await page.call("Input.insertText", text="run touch made.txt && echo made")
        for _ in range(40):
            await page.key("Tab", 9)
            if await page.evaluate("document.activeElement.innerText") == "Start":
                break
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
        await page.when("document.querySelector('section.request') !== null")
        await page.evaluate("document.querySelector('h1').focus()")
        for _ in range(60):
            await page.key("Tab", 9)
            if await page.evaluate("document.activeElement.innerText") == "Allow":
                break
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
        await page.when(says("the tool answered: made", "[role=log]"))


async def test_the_menu_of_a_narrow_screen_opens_and_closes(console: Console) -> None:
    async with console("/sessions") as page:
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=NARROW, height=740, deviceScaleFactor=1, mobile=True
        )
        await page.when("!document.querySelector('nav').checkVisibility({visibilityProperty: true})")
        await page.press("Open the menu")
        await page.when("document.querySelector('nav').checkVisibility({visibilityProperty: true})")
        await page.evaluate("[...document.querySelectorAll('nav a')].find((a) => a.innerText === 'Usage').click()")
        await page.when("document.querySelector('h1')?.innerText === 'Usage'")
        await page.when("!document.querySelector('nav').checkVisibility({visibilityProperty: true})")
