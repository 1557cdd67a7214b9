"""A real Chromium without a window, driven over its DevTools protocol, for tests of pages.

https://chromedevtools.github.io/devtools-protocol: `Runtime.evaluate`, `Input.*`, `Emulation.*`, `Page.captureScreenshot`.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
    "--window-size=1000,800", "about:blank",
)  # fmt: skip


class Page:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.faults: list[str] = []
        """What the page threw or the content policy refused."""
        for domain in ("Runtime", "Page", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=20))
            if message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(json.dumps(message["params"]["exceptionDetails"])[:500])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["source"] == "security":
                self.faults.append(message["params"]["entry"]["text"])
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 10.0) -> Any:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} did not come true; {self.faults}; {self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def key(self, name: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more)

    def enter(self) -> None:
        self.key("Enter", 13, "\r")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")

    def hover(self, selector: str) -> None:
        place = self.run(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + r.height / 2] })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """`folder`: for the browser's profile; emptied by the caller."""
    from websockets.sync.client import connect

    assert PROGRAM is not None
    process = subprocess.Popen(
        [PROGRAM, *_OPTIONS[:-1], f"--user-data-dir={folder}", _OPTIONS[-1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        note, end = folder / "DevToolsActivePort", time.monotonic() + 30
        while not note.exists() or "\n" not in note.read_text():
            assert process.poll() is None and time.monotonic() < end, "chromium did not start"
            time.sleep(0.05)
        port = note.read_text().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        tabs = json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=10))
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(address, max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
