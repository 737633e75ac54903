"""A headless Chromium, controlled by its DevTools protocol over a pair of pipes, without a driver or a port."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--mute-audio", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-extensions", "--lang=en-GB",
)  # fmt: skip
DESKTOP, PHONE = (1280, 800), (390, 844)
PATIENCE_SECONDS = 120.0
_READ, _WRITE = 3, 4
"""The file descriptors that Chromium takes commands from and answers to."""


class Page:
    """The browser's one page."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._received = 0, b""
        self._session: str | None = None
        self.requested: list[str] = []
        """URLs requested since the page was opened."""
        self.complaints: list[str] = []
        """Uncaught exceptions of scripts."""
        [target] = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.resize(DESKTOP)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE_SECONDS)
            assert ready, "the browser does not answer"
            self._received += os.read(self._answers, 1 << 20)
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))

    def resize(self, size: tuple[int, int], scale: float = 1) -> None:
        """Resize the window, in CSS pixels."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
            mobile=width < 600,
        )  # fmt: skip

    def open(self, address: str) -> None:
        """Navigate to a URL, without waiting for its resources."""
        self.call("Page.navigate", url="about:blank")
        self.requested.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=address)

    def open_file(self, file: Path, size: tuple[int, int]) -> None:
        """Open a file and its images in a window of this size, which the page must not exceed in width."""
        self.resize(size)
        self.open(f"file://{file}")
        self.wait_for("document.readyState === 'complete'")
        self.wait_for("[...document.images].every(i => (i.loading = 'eager') && i.complete && i.naturalWidth > 0)")
        assert self.value("document.documentElement.scrollWidth") <= size[0]

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        # With a user gesture, without which nothing plays.
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.value(script)):
            assert time.monotonic() < end, f"timed out: {script}\nthe page reads: {self.text()[:2000]}"
            time.sleep(0.1)
        return value

    def text(self) -> str:
        """The visible text of the page."""
        return self.value("document.body ? document.body.innerText : ''")

    def wait_for_text(self, words: str) -> None:
        """Wait until the visible text contains these words."""
        self.wait_for(f"document.body && document.body.innerText.includes({json.dumps(words)})")

    def click(self, script: str) -> None:
        """Click in the middle of the element of an expression, once it exists."""
        self.wait_for(f"!!({script})")
        self.value(f"({script}).scrollIntoView({{block: 'center'}})")
        box = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])(({script}).getBoundingClientRect())")
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
        self.call("Input.dispatchMouseEvent", type="mousePressed", **place)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **place)

    def click_text(self, words: str, kind: str = "*") -> None:
        """Click the innermost element of a kind whose text is exactly this."""
        found = f"[...document.querySelectorAll({json.dumps(kind)})].filter(e => e.innerText?.trim() === "
        self.click(f"{found}{json.dumps(words)}).pop()")

    def screenshot(self, file: Path, whole: bool = False) -> Path:
        """Save the window, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(answer["data"]))
        return file

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def pdf(self, file: Path) -> Path:
        """Save the page as PDF."""
        answer = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(answer["data"]))
        return file


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Chromium with an empty profile in a folder; skips the test if it is not installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed: install the Debian package {PROGRAMS[0]}")
    take, commands = os.pipe()
    answers, give = os.pipe()
    words = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    # The shell moves the pipes to the descriptors of Chromium.
    line = f'exec "$@" {_READ}<&{take} {_WRITE}>&{give}'
    process = subprocess.Popen(
        ["bash", "-c", line, "browser", *words], pass_fds=(take, give), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(take)
    os.close(give)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        process.terminate()
        process.wait()
