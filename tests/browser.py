"""Debian's Chromium without a window, driven over its pipe: no package, no port."""

import base64
import json
import os
import shutil
import subprocess
import time
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from tempfile import TemporaryDirectory

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip


def chromium() -> str | None:
    return shutil.which("chromium")


class Browser:
    """A page at a time. `console` and `requests` are what the last one said and asked for, errors among them."""

    def __enter__(self):
        self.profile = TemporaryDirectory(ignore_cleanup_errors=True)
        read, theirs_out = os.pipe()
        theirs_in, write = os.pipe()
        ends = [fcntl(end, F_DUPFD, 10) for end in (theirs_in, theirs_out)]  # out of the way of 3 and 4
        command = [chromium(), *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        # Chromium reads commands from its descriptor 3 and answers on 4.
        redirected = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]} {ends[0]}<&- {ends[1]}>&-'
        self.process = subprocess.Popen(
            ["bash", "-c", redirected, "chromium", *command],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self.input, self.output = os.fdopen(write, "wb", 0), os.fdopen(read, "rb", 0)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.input.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self.profile.cleanup()

    def _message(self) -> dict:
        while b"\0" not in self.buffer:
            part = os.read(self.output.fileno(), 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def do(self, method: str, **parameters):
        """Sends a command of the DevTools protocol; returns its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.input.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path | str, width: int = 1280, height: int = 900, scheme: str = "light") -> float:
        """Opens a file or an address; returns the seconds until it was loaded and painted."""
        mobile = width < 600
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        began = time.perf_counter()
        self.do("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.perf_counter() - began

    @property
    def console(self) -> list[str]:
        """What the page said of errors and warnings."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in bad]

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        sent = (event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [one["request"]["url"] for one in sent]

    def run(self, script: str):
        """The value of an expression in the page."""
        result = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Moves the pointer to a place in the window, and clicks there."""
        self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file: Path) -> None:
        """The whole page as a PNG."""
        image = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(image["data"]))
