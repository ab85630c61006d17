"""A headless Chromium, driven over its DevTools protocol, as far as the tests of the console need one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

START_SECONDS = 60
WAIT_SECONDS = 60

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    "--headless",
    "--no-sandbox",  # containers run the tests as root, where Chromium refuses its own
    "--no-first-run",
    "--no-proxy-server",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--window-size=1280,800",
)

# Not all that is looked at is a change of the document: what a field holds, an address, a picture that has come. What
# throws is not so yet.
_WHEN = """new Promise((done) => {
  const look = () => {
    let seen = false;
    try { seen = %s; } catch {}
    if (!seen) return;
    observer.disconnect();
    clearInterval(timer);
    done(true);
  };
  const observer = new MutationObserver(look);
  const timer = setInterval(look, 100);
  observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  look();
})"""

# Of several the last: what was opened last is on top. What is in no open dialog cannot be clicked while there is one.
_ON_TOP = """const top = [...document.querySelectorAll('dialog[open]')].at(-1) ?? document.body"""

_NAMED = f"""(name) => {{ {_ON_TOP};
  const said = (node) => (node.getAttribute('aria-label') ?? node.innerText).replace(/\\s+/g, ' ').trim();
  return [...top.querySelectorAll('button, a[href], summary, [role=tab]')]
    .filter((node) => said(node) === name && node.checkVisibility() && !node.disabled).at(-1); }}"""

_LABELLED = f"""(text) => {{ {_ON_TOP};
  return [...top.querySelectorAll('label')]
    .filter((label) => label.innerText.trim() === text && label.checkVisibility())
    .map((label) => label.control).at(-1); }}"""

_CHOOSE = """(node, value) => {
  if (node.matches('[type=checkbox], [type=radio]')) return void (node.checked !== (value === 'on') && node.click());
  node.value = value;
  node.dispatchEvent(new Event(node.matches('select') ? 'change' : 'input', {bubbles: true}));
}"""


def program() -> str | None:
    """Chromium's path, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab, with all that it asked for and complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._loads: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.requests: list[dict[str, Any]] = []
        self.complaints: list[str] = []

    async def _listen(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self._socket:
                self._take(json.loads(text))
        for call in self._calls.values():
            call.cancel()

    def _take(self, told: dict[str, Any]) -> None:
        if "id" in told:
            self._calls.pop(told["id"]).set_result(told)
            return
        params = told["params"]
        match told["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"])
            case "Log.entryAdded" if params["entry"]["level"] in ("warning", "error"):
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Page.lifecycleEvent" if params["name"] == "load":
                self._loads[params["loaderId"]].set()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = max(self._calls, default=0) + 1
        self._calls[number] = answer = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send(json.dumps(message))
        told: dict[str, Any] = await asyncio.wait_for(answer, WAIT_SECONDS)
        assert "error" not in told, (method, told)
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, url: str) -> None:
        """Attach to a fresh tab and load the page."""
        target = await self.call("Target.createTarget", url="about:blank")
        self._target = target["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call("Page.setLifecycleEventsEnabled", enabled=True)
        await self.go(url)

    async def close(self) -> None:
        """Close the tab: what it has open counts with what other tabs have."""
        self._session = None
        await self.call("Target.closeTarget", targetId=self._target)

    async def go(self, url: str) -> None:
        """Load another document."""
        # The empty one before it is loaded, too, and may say so late.
        navigated = await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loads[navigated["loaderId"]].wait(), WAIT_SECONDS)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def when(self, expression: str) -> None:
        """Wait until a JavaScript expression is true of the document."""
        try:
            await self.evaluate(_WHEN % expression)
        except TimeoutError:
            seen = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{seen}") from None

    async def type(self, element_id: str, text: str) -> None:
        """Replace what is in a field by what a person types."""
        node = f"document.getElementById({element_id!r})"
        await self.evaluate(f"({node}.closest('details')?.setAttribute('open', ''), {node}.focus(), {node}.select())")
        assert await self.evaluate(f"document.activeElement === {node}"), f"{element_id} cannot be typed into"
        await self.call("Input.insertText", text=text)

    async def choose(self, element_id: str, value: str) -> None:
        """Choose an option of a list."""
        changed = "new Event('change', {bubbles: true})"
        node = f"document.getElementById({element_id!r})"
        await self.evaluate(f"({node}.value = {value!r}, {node}.dispatchEvent({changed}))")

    async def choose_files(self, element_id: str, *files: Path) -> None:
        """Choose files to upload."""
        found = await self.call("Runtime.evaluate", expression=f"document.getElementById({element_id!r})")
        names = [str(file) for file in files]
        await self.call("DOM.setFileInputFiles", objectId=found["result"]["objectId"], files=names)

    async def click(self, selector: str) -> None:
        await self.evaluate(f"document.querySelector({selector!r}).click()")

    async def press(self, name: str) -> None:
        """Click the button, link, tab or line to unfold of this name, as soon as it is there and can be clicked."""
        await self.when(f"(({_NAMED})({json.dumps(name)}).click(), true)")

    async def fill(self, label: str, text: str) -> None:
        """Replace what is in the field of this label, as soon as it is there; of a list, choose."""
        found = f"({_LABELLED})({json.dumps(label)})"
        await self.when(f"{found} !== undefined")
        if await self.evaluate(f"{found}.matches('select, [type=date], [type=checkbox], [type=radio]')"):
            await self.evaluate(f"({_CHOOSE})({found}, {json.dumps(text)})")
            return
        await self.evaluate(f"({found}.focus(), {found}.select())")
        await self.call("Input.insertText", text=text)

    async def key(self, key: str, code: int) -> None:
        """Press a key that writes nothing."""
        for kind in ("rawKeyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    async def text(self, selector: str) -> str:
        return str(await self.evaluate(f"document.querySelector({selector!r}).innerText"))


class Browser:
    """A running Chromium."""

    def __init__(self, address: str) -> None:
        self._address = address

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        async with connect(self._address, max_size=None, proxy=None) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page._listen())
            try:
                await page.open(url)
                try:
                    yield page
                finally:
                    await page.close()
            finally:
                await socket.close()
                await listening


@asynccontextmanager
async def running(path: str) -> AsyncIterator[Browser]:
    """Chromium with a profile of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            env={**os.environ, "HOME": profile},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                while line := await process.stderr.readline():
                    if b"DevTools listening on " in line:
                        break
            assert line, "Chromium ended before it listened"
            drained = asyncio.create_task(process.stderr.read())
            yield Browser(line.decode().rpartition(" ")[2].strip())
        finally:
            tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            for pid in tree:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            await process.wait()
        await drained
