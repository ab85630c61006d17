"""A page of the console while the instances behind it die."""

from __future__ import annotations

from signal import SIGKILL

import pytest

from tests.balancer import balancing
from tests.browser import Browser
from tests.conftest import StartFleet
from tests.fleet import Fleet
from tests.web.console.conftest import says, sign_in

THREAD = "[role=log]"
WORDS = 100


@pytest.fixture
async def three(start_fleet: StartFleet) -> Fleet:
    return await start_fleet(3)


async def test_a_page_goes_on_when_the_instance_that_it_listens_to_is_killed(chromium: Browser, three: Fleet) -> None:
    session = await three[0].session()
    await three[0].prompt(session, f"stream {WORDS} words every 150 ms")
    async with three[0].stream(f"/sessions/{session}/events") as events:
        await anext(event async for event in events if event.event == "partial")
    owner = await three.owner_of(session)
    async with balancing(three.instances) as balancer, chromium.page(f"{balancer.url}/console") as page:
        # Whoever serves the stream is not who runs the agent.
        await sign_in(page)
        serving, spare = [instance for instance in three.instances if instance is not owner]
        balancer.instances = [serving]
        await balancer.drop()
        path = f"/console/sessions/{session}"
        await page.evaluate(f"(history.pushState(null, '', {path!r}), dispatchEvent(new PopStateEvent('popstate')))")
        await page.when("document.querySelector('.draft')?.innerText.includes('word5')")
        balancer.instances = [spare, owner]
        serving.signal(SIGKILL)
        await serving.ended()
        await page.when("document.querySelector('.outcome') !== null")
        said = await page.text(THREAD)
        assert said.count(" ".join(f"word{number}" for number in range(1, WORDS + 1))) == 1
        assert said.count("word1 ") == 1
        resumed = [r for r in page.requests if r["url"].endswith("/events") and "Last-Event-ID" in r["headers"]]
        assert resumed
        assert "Live" in await page.text(".session-head")
        # What is stored is what is shown, each event once and in its order.
        shown = await page.evaluate("[...document.querySelectorAll('.span-seq')].map((node) => Number(node.innerText))")
        stored = (await owner.get(f"/sessions/{session}/events", headers={"Accept": "application/json"})).json()["data"]
        seqs = [event["data"]["seq"] for event in stored]
        assert seqs == list(range(1, len(seqs) + 1))
        assert shown == sorted(set(shown))
        assert set(shown) <= set(seqs)
        assert seqs[-1] in shown


async def test_a_page_shows_that_the_instance_with_its_agent_was_killed_and_takes_the_next_prompt(
    chromium: Browser, three: Fleet
) -> None:
    session = await three[0].session()
    path = f"/console/sessions/{session}"
    async with balancing(three.instances) as balancer, chromium.page(f"{balancer.url}{path}") as page:
        await sign_in(page)
        await page.when("document.getElementById('prompt') !== null")
        await page.type("prompt", "stream 200 words slowly")
        await page.key("Enter", 13)
        await page.when("document.querySelector('.draft')?.innerText.includes('word5')")
        owner = await three.owner_of(session)
        owner.signal(SIGKILL)
        await owner.ended()
        await page.when(says("owner_lost", THREAD))
        assert (await page.text(THREAD)).count("word1 ") == 1
        await page.when("document.querySelector('.cut')?.innerText.includes('word5')")
        await page.type("prompt", "say I am back")
        await page.key("Enter", 13)
        await page.when("document.querySelectorAll('.outcome').length === 2")
        assert (await page.text(THREAD)).count("[demo model, scripted] I am back") == 1
