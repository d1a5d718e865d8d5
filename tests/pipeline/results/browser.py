"""A headless Chromium driven over the WebDriver protocol of chromedriver."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own key for an element
ENTER, ESCAPE, RIGHT, TAB = "\ue007", "\ue00c", "\ue014", "\ue004"


def missing() -> str | None:
    """What is not installed, or None."""
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        return "needs Chromium, which is not installed"
    return None if shutil.which("chromedriver") else "needs chromedriver, which is not installed"


class Browser:
    """One browser with one page."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        driver = shutil.which("chromedriver")
        assert driver is not None
        self.driver = subprocess.Popen(
            [driver, f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.session = ""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        arguments += [f"--user-data-dir={folder}", "--window-size=1200,900", "--disable-background-networking"]
        options: dict[str, Any] = {"args": arguments}
        if binary := shutil.which("chromium"):
            options["binary"] = binary
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        for attempt in range(100):
            try:
                answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
                break
            except OSError:
                if attempt == 99 or self.driver.poll() is not None:
                    raise
                time.sleep(0.2)
        self.session = f"/session/{answer['sessionId']}"

    def close(self) -> None:
        try:
            self._ask("DELETE", self.session, None)
        finally:
            self.driver.terminate()
            self.driver.wait()

    def _ask(self, method: str, path: str, content: Any) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def go(self, url: str) -> None:
        self._ask("POST", self.session + "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        return self._ask("POST", self.session + "/execute/sync", {"script": script, "args": list(args)})

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._ask("POST", self.session + "/actions", {"actions": [source]})

    def click(self, selector: str) -> None:
        element = self._ask("POST", self.session + "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"{self.session}/element/{element[ELEMENT]}/click", {})

    def devtools(self, command: str, **params: Any) -> Any:
        return self._ask("POST", self.session + "/goog/cdp/execute", {"cmd": command, "params": params})

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self._ask("POST", self.session + "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """URLs asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url[:100] for url in sent]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", self.session + "/screenshot", None)))
