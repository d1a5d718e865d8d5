"""A headless Chromium driven over the WebDriver protocol of chromedriver."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.debian import Unavailable, library_folders, unpacked

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own key for an element
ENTER, ESCAPE, RIGHT, TAB = "\ue007", "\ue00c", "\ue014", "\ue004"


def programs() -> tuple[str, str, dict[str, str]]:
    """Chromium, chromedriver and the environment for both: those installed, else those of Debian's packages.

    Raises:
        Unavailable: They are neither here nor can they be fetched.
    """
    installed, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if installed and driver:
        return installed, driver, dict(os.environ)
    root = unpacked("chromium", "chromium", "chromium-driver")
    libraries = ":".join(map(str, library_folders(root)))
    # Not usr/bin/chromium, a script that starts what is installed.
    return (
        f"{root}/usr/lib/chromium/chromium",
        f"{root}/usr/bin/chromedriver",
        os.environ | {"LD_LIBRARY_PATH": libraries},
    )


class Browser:
    """One browser with one page. Raises Unavailable where there can be none."""

    def __init__(self, folder: Path) -> None:
        binary, driver, environment = programs()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.driver = subprocess.Popen(
            [driver, f"--port={self.port}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.session = ""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        arguments += [f"--user-data-dir={folder}", "--window-size=1200,900", "--disable-background-networking"]
        options = {"args": arguments, "binary": binary}
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        for attempt in range(100):
            try:
                answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
                break
            except urllib.error.HTTPError as error:  # chromedriver runs, Chromium does not start
                self.driver.terminate()
                self.driver.wait()
                raise Unavailable(json.loads(error.read())["value"]["message"].partition("\n")[0]) from None
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
