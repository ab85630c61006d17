"""The pictures of docs/console.md: `scripts/screenshots [DIRECTORY]`."""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests import browser
from tests.browser import Page
from tests.dev_process import Dev
from tests.web.console.conftest import visit
from tests.web.console.walk import Newcomer

MOST_BYTES = 150_000
WIDE, NARROW = (1200, 680), (360, 720)

WORK = (
    (
        "Weekly report",
        ["report"],
        "write report.md: # Week 31 then run wc -w report.md then say The report has one line.",
    ),
    ("Which colour?", ["design"], "ask Which colour shall the button have? options Red, Green, Blue"),
    ("Tidy up the drafts", ["chores"], "run rm -r drafts"),
)
"""What others have asked agents of the same tenant: title, tags, prompt."""


class Camera:
    """Takes pictures of a page into a directory."""

    def __init__(self, page: Page, directory: Path) -> None:
        self.page, self.directory = page, directory

    async def stand(self, size: tuple[int, int], shade: str) -> None:
        width, height = size
        # What moves is not the same twice.
        features = [
            {"name": "prefers-color-scheme", "value": shade},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.page.call("Emulation.setEmulatedMedia", features=features)
        await self.page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == NARROW
        )

    async def see(self, name: str) -> None:
        await self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        taken = await self.page.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        picture = base64.b64decode(taken["data"])
        assert len(picture) <= MOST_BYTES, f"{name}.png would have {len(picture)} bytes"
        (self.directory / f"{name}.png").write_bytes(picture)


async def others(url: str, key: str) -> None:
    """Sessions that a tenant has after a while: one that is done, and two that wait for somebody."""
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers={"X-API-Key": key}, timeout=120) as client:
        for title, tags, prompt in WORK:
            mode = "bypassPermissions" if title == WORK[0][0] else "default"
            made = await client.post("/sessions", json={"title": title, "tags": tags, "permission_mode": mode})
            session = made.raise_for_status().json()["session_id"]
            (await client.post(f"/sessions/{session}/query", json={"prompt": prompt})).raise_for_status()


async def take(page: Page, camera: Camera, url: str, key: str, downloads: Path) -> None:
    await camera.stand(WIDE, "light")
    newcomer, began = Newcomer(page, camera.see), time.monotonic()
    await newcomer.walk(key, downloads)
    print(f"From the sign-in to the file: {newcomer.clicks} clicks, {time.monotonic() - began:.0f} s")

    await page.press("Timeline")
    await page.click(".span:nth-of-type(2) .span-row")
    await page.when("document.querySelector('.span-body pre') !== null")
    await camera.stand(WIDE, "dark")
    await camera.see("timeline-dark")

    await others(url, key)
    await visit(page, "/inbox")
    await page.when("document.querySelectorAll('section.request').length === 2")
    await camera.stand(NARROW, "light")
    await camera.see("inbox-narrow")

    await visit(page, "/usage")
    await page.when("document.querySelector('.chart canvas') !== null")
    await camera.stand(WIDE, "light")
    await page.when("document.querySelector('tbody tr') !== null")
    await camera.see("usage")


async def main(directory: Path) -> None:
    found = browser.program()
    if found is None:
        raise SystemExit("There is no Chromium (Debian: apt-get install chromium).")
    with tempfile.TemporaryDirectory() as scratch:
        dev = Dev(Path(scratch))
        try:
            [row] = await asyncio.to_thread(dev.ready)
            (downloads := Path(scratch, "downloads")).mkdir()
            async with browser.running(found) as chromium, chromium.page(f"{row['url']}/console") as page:
                await take(page, Camera(page, directory), row["url"], dev.key(), downloads)
        finally:
            dev.process.terminate()
            await asyncio.to_thread(dev.exit_code)


if __name__ == "__main__":
    (pictures := Path(sys.argv[1])).mkdir(parents=True, exist_ok=True)
    asyncio.run(main(pictures))
