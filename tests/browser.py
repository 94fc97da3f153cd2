"""A headless Chromium for tests, driven over its debugging pipe: no driver, no socket, no package."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WAIT_S = 120.0                                            # a bound for a machine that is busy; nothing waits so long


def executable() -> str | None:
    """The first Chromium on the path, or the one that HIBENCH_CHROMIUM names; None where there is none."""
    return os.environ.get("HIBENCH_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


def axe() -> str | None:
    """The script of axe-core, an engine of accessibility rules; None where no package that carries it is installed."""
    spec = importlib.util.find_spec("axe_core_python")
    path = Path(spec.origin).with_name("axe.min.js") if spec and spec.origin else None
    return path.read_text(encoding="utf-8") if path and path.is_file() else None


AUDIT = """axe.run(%s, {resultTypes: ["violations"]}).then((found) => found.violations.flatMap((rule) => rule.nodes.map(
    (node) => `${rule.id} (${rule.impact}): ${node.html.slice(0, 200)}: ${node.failureSummary}`)))"""
# Every visible element with text of its own against the nearest background that is not transparent, as WCAG 2 defines contrast.
FAINT = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => { const colour = getComputedStyle(element).backgroundColor;
    return parts(colour)[3] === 0 && element.parentElement ? behind(element.parentElement) : colour; };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return [...document.querySelectorAll("body *:not(script, style, option)")]
    .filter((element) => element instanceof HTMLElement && element.checkVisibility() && own(element))
    .filter((element) => !element.closest(":disabled"))
    .map((element) => { const a = light(getComputedStyle(element).color), b = light(behind(element));
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)]; })
    .filter(([ratio]) => ratio < 4.5);
})()"""


class Browser:
    """One page; `errors` collects what its console reported, `requests` every address that it asked for."""

    def __init__(self, program: str, profile: Path, width: int = 1366, height: int = 850) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
                 "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}",
                 f"--window-size={width},{height}", "about:blank"]
        # the debugging pipe is file descriptors 3 (in) and 4 (out) of the browser
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(["bash", "-c", shell, program, *flags], pass_fds=(to_read, to_write),
                                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._ids, self._session = b"", itertools.count(1), None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = 0
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in pages if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT_S
        while True:
            answer = self._message(end - time.monotonic())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._event(answer)

    def _message(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, seconds))[0]:
                raise TimeoutError("the browser does not answer")
            got = os.read(self._read, 1 << 20)
            if not got:
                raise RuntimeError("the browser has gone")
            self._buffer += got
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _event(self, event: dict[str, Any]) -> None:
        name, said = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(said["args"]))
        elif name == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(said["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"][:200])
        elif name == "Page.loadEventFired":
            self.loaded += 1

    def open(self, page: Path) -> None:
        """Load a file and wait for it."""
        before = self.loaded
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + WAIT_S
        while self.loaded == before:
            self._event(self._message(end - time.monotonic()))

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click of the mouse in the middle of an element."""
        x, y = self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def centre(self, selector: str) -> tuple[float, float]:
        """The middle of an element after it was scrolled into view."""
        x, y = self.run(f"""(() => {{ const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{block: "center", inline: "center"}}); const box = found.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()""")
        return x, y

    def drag(self, selector: str, dx: float, dy: float) -> None:
        """Press in the middle of an element, move, let go."""
        x, y = self.centre(selector)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + dx, y=y + dy, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, button="left", clickCount=1)

    def key(self, key: str) -> None:
        """One key; a letter or sign is also typed."""
        code = {"Enter": 13, "Escape": 27, "Tab": 9}.get(key)
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        more = {"windowsVirtualKeyCode": code} if code else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def type(self, text: str) -> None:
        """Insert text where the focus is."""
        self.call("Input.insertText", text=text)

    def audit(self, script: str, part: str = "document") -> list[str]:
        """What axe (its script is given) says is wrong with the page, or a part, as it stands: one line per element."""
        if not self.run("Boolean(window.axe)"):
            self.run(f"{script}\n;null")
        return list(self.run(AUDIT % part))

    def faint(self) -> list[Any]:
        """Texts with less contrast than 4.5 : 1, each as (ratio, element)."""
        return list(self.run(FAINT))

    def screenshot(self, path: Path, selector: str | None = None) -> Path:
        """A picture of what is seen, or of one element."""
        if selector:
            self.centre(selector)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        """End the browser."""
        try:
            self._session = None
            self.call("Browser.close")
        except (RuntimeError, TimeoutError, OSError):
            self._process.kill()
        self._process.wait(timeout=WAIT_S)
        os.close(self._read)
        os.close(self._write)
