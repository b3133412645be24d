"""A Chromium that the tests drive as somebody does who looks and clicks, by its own protocol (CDP), without a driver
between.

    async with Chromium() as browser:
        tab = await browser.open(url, width=390)
        await tab.click("Endpoints")            # what can be clicked, by its words
        await tab.until("document.title.startsWith('Endpoints')")

Where there is none, `ABSENT` is why. Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import tempfile
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

PROGRAM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
ABSENT = "" if PROGRAM else "Chromium is not installed: apt-get install chromium, or name one in CHROMIUM"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-port=0",
)
START_S, LOOK_S, PATIENCE_S = 30.0, 0.03, 12.0
KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "ArrowRight": ("", 39), "ArrowLeft": ("", 37), " ": (" ", 32)}
# What somebody sees that has these words as its name, or in it: the closest first.
FIND = """(words, kinds) => {
  const seen = (one) => one.checkVisibility({ visibilityProperty: true }) && one.getBoundingClientRect().width > 0;
  const name = (one) => (one.getAttribute("aria-label") ?? one.innerText ?? "").replace(/\\s+/g, " ").trim();
  const found = [...document.querySelectorAll(kinds)].filter(seen);
  return found.find((one) => name(one) === words) ?? found.find((one) => name(one).includes(words));
}"""
CLICKABLE = "a, button, summary, [role=tab], label, select"


class Chromium:
    """One browser, of which each tab that is opened has cookies of its own."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._tabs: dict[str, Tab] = {}

    async def __aenter__(self) -> Self:
        assert PROGRAM, ABSENT
        self._folder = tempfile.mkdtemp(prefix="nomyo-chromium-")
        self._log = Path(self._folder) / "log"
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                PROGRAM, *FLAGS, f"--user-data-dir={self._folder}/profile", "about:blank", stdout=log, stderr=log
            )
        address = await self._address()
        self._socket: ClientConnection = await connect(address, max_size=None, proxy=None)
        self._reading = asyncio.create_task(self._read(), name="chromium")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.send("Browser.close"), 5)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _address(self) -> str:
        async with asyncio.timeout(START_S):
            while not (found := re.search(rb"DevTools listening on (ws://\S+)", self._log.read_bytes())):
                assert self._process.returncode is None, self._log.read_text()
                await asyncio.sleep(LOOK_S)
        return found[1].decode()

    def complaints(self) -> list[str]:
        """Of all tabs."""
        return [complaint for tab in self._tabs.values() for complaint in tab.complaints]

    async def open(self, url: str = "", *, width: int = 1440, height: int = 900, dark: bool = False) -> Tab:
        """A tab in a context of its own."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        target = (await self.send("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        await tab.resize(width, height)
        await tab.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        if url:
            await tab.go(url)
        return tab

    async def send(self, method: str, session: str = "", **params: Any) -> Any:
        """The answer to a command."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        of_session = {"sessionId": session} if session else {}
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params, **of_session}))
        return await answer

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if answer.done():
                    continue
                if "error" in message:
                    answer.set_exception(RuntimeError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            elif tab := self._tabs.get(message.get("sessionId", "")):
                tab.heard(message["method"], message["params"])


class Tab:
    """A tab. `complaints` are what its console has as an error: exceptions, and what a policy has kept out; but for
    those that have one of the words `expects`."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        # Where its router has stopped before it.
        self.expects = ["net::ERR_CONNECTION_REFUSED"]
        self._complaints: list[str] = []
        self.requested: list[str] = []

    @property
    def complaints(self) -> list[str]:
        """What is wrong, as far as it was not expected."""
        return [one for one in self._complaints if not any(words in one for words in self.expects)]

    async def send(self, method: str, **params: Any) -> Any:
        """The answer to a command."""
        return await self._browser.send(method, self._session, **params)

    def heard(self, method: str, params: dict[str, Any]) -> None:
        """An event of the tab."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self._complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self._complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])

    async def go(self, url: str) -> None:
        """Loads a page."""
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def resize(self, width: int, height: int) -> None:
        """The window gets this size."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    async def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript, also of one that is a promise."""
        answer = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if details := answer.get("exceptionDetails"):
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def until(self, condition: str, patience_s: float = PATIENCE_S) -> Any:
        """The value of an expression, once it is true."""
        found = None
        try:
            async with asyncio.timeout(patience_s):
                while not found:
                    with contextlib.suppress(AssertionError, RuntimeError):  # A page is being loaded.
                        found = await self.value(condition)
                    if not found:
                        await asyncio.sleep(LOOK_S)
        except TimeoutError:
            shown = await self.value("document.body.innerText")
            raise AssertionError(f"never true: {condition}\nthe page: {shown[:3000]}\n{self.complaints}") from None
        return found

    async def sees(self, words: str, patience_s: float = PATIENCE_S) -> None:
        """Waits until the words can be read."""
        await self.until(f"document.body.innerText.includes({json.dumps(words)})", patience_s)

    async def text(self, selector: str) -> str:
        """What can be read in an element."""
        return await self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    async def click(self, words: str, kinds: str = CLICKABLE) -> None:
        """Clicks in the middle of what has these words, with a mouse."""
        find = f"({FIND})({json.dumps(words)}, {json.dumps(kinds)})"
        await self.until(f"Boolean({find}) && !{find}.disabled")
        await self.value(f"{find}.scrollIntoView({{ block: 'center', inline: 'nearest', behavior: 'instant' }})")
        x, y = await self.value(
            f"(() => {{ const box = {find}.getBoundingClientRect(); "
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        await self._mouse("mouseMoved", x, y, button="none")
        await self._mouse("mousePressed", x, y)
        await self._mouse("mouseReleased", x, y)

    async def _mouse(self, type: str, x: float, y: float, button: str = "left") -> None:
        await self.send("Input.dispatchMouseEvent", type=type, x=x, y=y, button=button, clickCount=1)

    async def write(self, selector: str, text: str) -> None:
        """Writes into a field, in place of what is there."""
        field = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"Boolean({field})")
        await self.value(f"{field}.focus(), {field}.select?.()")
        await self.send("Input.insertText", text=text)

    async def type(self, text: str) -> None:
        """Writes to where the keyboard is."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Presses a key."""
        text, code = KEYS[key]
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def focused(self) -> str:
        """The words of what the keyboard is at."""
        return await self.value(
            "(() => { const one = document.activeElement; "
            "return (one.getAttribute('aria-label') ?? one.innerText ?? one.id ?? '').trim() || one.id; })()"
        )

    async def picture(self, file: Path, *, whole: bool = True) -> None:
        """What is seen, as a PNG; the `whole` page, or what fits the window."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=whole, **await self._clip(whole))
        await asyncio.to_thread(file.write_bytes, base64.b64decode(shot["data"]))

    async def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
