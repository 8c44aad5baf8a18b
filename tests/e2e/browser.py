"""A real browser without a window, told what to do over its own protocol (Chrome DevTools, through two pipes)."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
)
WAIT_S = 20.0
KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32}


def require_chromium() -> str:
    """Its path. Without it the test is skipped, but not where CI should have it."""
    path = shutil.which("chromium")
    if path is None:
        reason = "needs chromium: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return path


class Browser:
    """One window of ``size``. Everything that a page logs as an error is in ``errors``."""

    def __init__(self, directory: Path, size: tuple[int, int] = (1400, 1000)) -> None:
        self.errors: list[str] = []
        self._number = 0
        self._session: str | None = None
        self._buffer = b""
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        words = [require_chromium(), *OPTIONS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={directory}"]
        # The browser reads commands from descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression} did not become true in {WAIT_S:g} s; {self.errors}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.evaluate(f"document.querySelector({selector!r}).innerText"))

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        x, y = self._point(selector, across, down)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def hover(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        x, y = self._point(selector, across, down)
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def press(self, key: str, *, shift: bool = False) -> None:
        modifiers = 8 if shift else 0
        code = KEY_CODES.get(key, ord(key.upper()[0]))
        for kind in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers, windowsVirtualKeyCode=code)
        self.settle()

    def choose(self, selector: str, value: str) -> None:
        """In a list of choices or a slider."""
        element = f"document.querySelector({selector!r})"
        events = "['input', 'change'].forEach((kind) => element.dispatchEvent(new Event(kind, { bubbles: true })))"
        self.evaluate(f"{{ const element = {element}; element.value = {value!r}; {events} }}")
        self.settle()

    def settle(self) -> None:
        """Until what was asked for is on the screen."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        os.close(self._to)  # it ends when nobody can tell it anything any more
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def _point(self, selector: str, across: float, down: float) -> tuple[float, float]:
        element = f"document.querySelector({selector!r})"
        self.evaluate(f"{element}.scrollIntoView({{ block: 'center' }})")
        box = self.evaluate(
            f"(({{ x, y, width, height }}) => [x, y, width, height])({element}.getBoundingClientRect())"
        )
        return box[0] + across * box[2], box[1] + down * box[3]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._notice(answer)

    def _notice(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                self.errors.append(f"asked the network for {url}")

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {WAIT_S:g} s"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message
