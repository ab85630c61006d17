"""A newcomer's way through the console: from the sign-in to a file that an agent has made, on the disk.

docs/console.md tells it, with the pictures that scripts/screenshots takes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.browser import Page
from tests.watch import until
from tests.web.console.conftest import says

FILE = "hello.txt"
CONTENT = "Hello from an agent!"
ENDED = "document.querySelector('.outcome .badge')?.innerText.trim() === 'Succeeded'"

See = Callable[[str], Awaitable[None]]
"""Is called where there is something to be seen, with its name."""


class Newcomer:
    """Somebody who reads what is on the page, and clicks.

    Attributes:
        clicks: how many it took so far.
    """

    def __init__(self, page: Page, see: See) -> None:
        self.page, self.see, self.clicks = page, see, 0

    async def press(self, name: str) -> None:
        await self.page.press(name)
        self.clicks += 1

    async def sign_in(self, key: str) -> None:
        await self.page.when("document.getElementById('api-key') !== null")
        await self.page.type("api-key", key)
        await self.see("sign-in")
        await self.press("Sign in")

    async def start(self) -> None:
        """Start an agent on the example, which asks before it writes."""
        await self.press("New session")
        await self.press("Use an example")
        await self.page.when(says("It would be accepted") + f" && !{says('0 characters in all')}")
        await self.see("new-session")
        await self.press("Start")
        await self.page.when(says(CONTENT, "section.request"))

    async def allow(self) -> None:
        """Find it among the sessions, look at what it wants, and let it."""
        await self.press("Sessions")
        await self.page.when(says("Requires action", "tbody"))
        await self.see("sessions")
        row = "[...document.querySelectorAll('tbody tr')].find((row) => row.innerText.includes('Requires action'))"
        await self.page.evaluate(f"{row}.querySelector('a').click()")
        self.clicks += 1
        await self.page.when(says(CONTENT, "section.request"))
        await self.see("asks")
        await self.press("Allow")
        await self.page.when(ENDED)

    async def take(self, downloads: Path) -> None:
        """Look at the file, and save it."""
        await self.press(FILE)
        await self.page.when(says(CONTENT, ".preview"))
        await self.see("file")
        await self.page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        await self.press("Download")
        await until(lambda: asyncio.to_thread((downloads / FILE).exists))  # another program makes it

    async def walk(self, key: str, downloads: Path) -> None:
        await self.sign_in(key)
        await self.start()
        await self.allow()
        await self.take(downloads)
