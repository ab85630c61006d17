"""What docs/console.md tells a newcomer to do, done."""

from __future__ import annotations

from pathlib import Path

from tests.balancer import Balancer
from tests.browser import Browser
from tests.fleet import API_KEY
from tests.web.console.walk import CONTENT, FILE, Newcomer

DOCUMENT = Path(__file__).parents[3] / "docs" / "console.md"


async def test_a_newcomer_finds_an_agent_allows_its_call_and_takes_its_file(
    chromium: Browser, balancer: Balancer, tmp_path: Path
) -> None:
    seen = []

    async def see(name: str) -> None:
        seen.append(name)

    async with chromium.page(f"{balancer.url}/console") as page:
        newcomer = Newcomer(page, see)
        await newcomer.walk(API_KEY, tmp_path)
        assert page.complaints == []
    assert (tmp_path / FILE).read_text() == CONTENT
    told = DOCUMENT.read_text(encoding="utf-8")
    assert f"in {newcomer.clicks} clicks" in told
    assert [name for name in seen if f"(console/{name}.png)" not in told] == []
