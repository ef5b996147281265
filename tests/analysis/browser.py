"""A headless Chromium, driven over a pipe by its DevTools protocol; no package is needed for it.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Literal, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE = 60.0  # seconds: starting it on a machine at work takes some


def found() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page in one browser, to be used in a `with`."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_read, to_write = os.pipe(), os.pipe()
        # Above 9, so that moving them to 3 and 4, where the browser looks, overwrites neither.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_write[0], to_read[1])]
        self._input, self._output = to_write[1], to_read[0]
        self._rest, self._count = b"", 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._process = subprocess.Popen(
            [
                "bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", executable,
                "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
                "--hide-scrollbars", f"--user-data-dir={profile}",
            ],
            pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (*theirs, to_write[0], to_read[1]):
            os.close(fd)
        self._session: str | None = None
        made = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._input)
        os.close(self._output)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer. Raises RuntimeError where the browser refuses."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._input, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def open(self, page: Path) -> None:
        """Loads a file and waits for all of it."""
        self.complaints.clear()
        self.requests.clear()
        self.send("Page.navigate", url=page.as_uri())
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            time.sleep(0.02)

    def look_as(
        self, width: int, theme: Literal["light", "dark"], medium: Literal["screen", "print"]
    ) -> None:
        """Sets the width in CSS pixels, the theme and the medium."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.send("Emulation.setEmulatedMedia", media=medium, features=features)

    def evaluate(self, script: str) -> Any:
        """The value of a script, awaited. Raises RuntimeError where it throws."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def pdf(self) -> bytes:
        """The page printed on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.send("Page.printToPDF", **size)["data"])

    def screenshot(self, *, whole: bool = True) -> bytes:
        """A PNG of all of the page, or of what is seen without scrolling."""
        answer = self.send(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        return base64.b64decode(answer["data"])

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**{k: size[k] for k in ("x", "y", "width", "height")}, "scale": 1}}

    def _note(self, event: dict[str, Any]) -> None:
        """Keeps what a console would show, and what was asked of the net."""
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(str(params["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(str(params["request"]["url"])[:200])

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._output], [], [], deadline - time.monotonic())
            part = os.read(self._output, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"the browser did not answer within {_PATIENCE:.0f} s")
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(text)
        return answer
