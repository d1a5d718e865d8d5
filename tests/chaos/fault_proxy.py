"""HTTP proxy on loopback that injects faults of real networks and stores between a client and an S3 server.

    with FaultProxy(server_url, random_faults(0.2, seed=1)) as proxy:
        ... use proxy.url as the endpoint ...
        assert proxy.counts["cut_after"] > 0

Faults, by name:

    503, 500, 409, 429   the proxy answers so, the server never sees the request
    slow                 passed on after `slow_s`
    cut_before           the connection is cut, the server never sees the request
    cut_request          the server gets half of the request's body, then both connections are cut
    cut_after            the server carries the request out, its answer is lost and the connection cut
    lost_answer          the server carries the request out, the answer says 500
    twice                passed on twice, as by a proxy that lost the first answer; the second answer is returned
    truncate             half of the answer's body, then the connection is cut
    expired, skewed, denied   as the numbers; they are not among the random faults, since no second try helps
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_CODES = {"503": "SlowDown", "500": "InternalError", "409": "ConditionalRequestConflict", "429": "TooManyRequests"}
FAULTS = (*_CODES, "slow", "cut_before", "cut_request", "cut_after", "lost_answer", "twice", "truncate")
REFUSALS = {
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "denied": (403, "AccessDenied"),
}  # of credentials
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}

Plan = Callable[[str, str], str | None]
"""From a request's method and path to the name of its fault, or None."""


def random_faults(rate: float, seed: int, faults: Iterable[str] = FAULTS, burst: int = 3) -> Plan:
    """A plan in which every request meets a fault with chance `rate`; a 503 is followed by up to `burst` - 1 more."""
    chance, lock, kinds = random.Random(seed), threading.Lock(), tuple(faults)
    pending: list[str] = []

    def plan(method: str, path: str) -> str | None:
        with lock:
            if pending:
                return pending.pop()
            if chance.random() >= rate:
                return None
            fault = chance.choice(kinds)
            if fault == "503":
                pending.extend([fault] * chance.randrange(burst))
            return fault

    return plan


def scripted_faults(*script: tuple[str, str], method: str | None = None) -> Plan:
    """A plan of (part of the path, fault) pairs: each strikes once, in order, at the next matching request.

    Args:
        script: the pairs.
        method: only requests with this method match; None: all.
    """
    remaining, lock = list(script), threading.Lock()

    def plan(request_method: str, path: str) -> str | None:
        with lock:
            for entry in remaining:
                if entry[0] in path and method in (None, request_method):
                    remaining.remove(entry)
                    return entry[1]
            return None

    return plan


class FaultProxy:
    """The proxy, in threads of this process. Use as a context manager; clients use `url` as their endpoint.

    `counts` says how often each fault struck, and under "ok" how many requests met none. With `one_at_a_time` the
    server sees one request after the other. Moto needs that where several writers meet: it checks whether an object is
    there and writes it in two steps, and lets two writers win (ran).
    """

    def __init__(
        self,
        server_url: str,
        plan: Plan = lambda method, path: None,
        *,
        slow_s: float = 0.3,
        one_at_a_time: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.plan, self.slow_s = plan, slow_s
        self.gate = threading.Lock() if one_at_a_time else contextlib.nullcontext()
        self.most_parallel = 0
        self._parallel, self._lock = 0, threading.Lock()
        parts = urlsplit(server_url)
        self.server_address = (str(parts.hostname), int(parts.port or 80))
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def enter(self, fault: str | None) -> None:
        with self._lock:
            self.counts[fault or "ok"] += 1
            self._parallel += 1
            self.most_parallel = max(self.most_parallel, self._parallel)

    def leave(self) -> None:
        with self._lock:
            self._parallel -= 1

    def wait_until_idle(self) -> None:
        """Waits until no request is in progress, including those whose client has given up."""
        while self._parallel:
            time.sleep(0.01)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: connections are cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        fault = proxy.plan(self.command, self.path)
        proxy.enter(fault)
        self._in_progress = True
        try:
            self._answer(fault, body)
        finally:
            self._leave()

    def _answer(self, fault: str | None, body: bytes) -> None:
        if fault == "slow":
            time.sleep(self.server.proxy.slow_s)
        if fault in _CODES:
            return self._refuse(int(str(fault)), _CODES[str(fault)])
        if fault in REFUSALS:
            return self._refuse(*REFUSALS[fault])
        if fault == "cut_before":
            return self._cut()
        if fault == "cut_request":
            self._send_half(body)
            return self._cut()
        status, headers, answer = self._pass_on(body)
        if fault == "twice":
            status, headers, answer = self._pass_on(body)
        if fault == "cut_after":
            return self._cut()
        if fault == "lost_answer":
            return self._refuse(500, "InternalError")
        self._leave()
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = dict((name.lower(), value) for name, value in headers).get("content-length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(answer)))
        self.end_headers()
        if fault == "truncate" and answer:
            self.wfile.write(answer[: len(answer) // 2])
            return self._cut()
        self.wfile.write(answer)

    def _leave(self) -> None:
        """Counts the request as done; before the answer's first byte, since the client may send its next one then."""
        if self._in_progress:
            self._in_progress = False
            self.server.proxy.leave()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.server.proxy.server_address, timeout=60)

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Sends the request to the server as it came, with its Host header, which the client has signed."""
        connection = self._connect()
        try:
            with self.server.proxy.gate:
                self._send_head(connection, body)
                connection.endheaders(body)
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
        except (OSError, http.client.HTTPException):  # the server is not running
            return 503, [], b""
        finally:
            connection.close()

    def _send_half(self, body: bytes) -> None:
        connection = self._connect()
        try:
            self._send_head(connection, body)
            connection.endheaders(body[: len(body) // 2])
        except OSError:
            pass
        finally:
            connection.close()

    def _send_head(self, connection: http.client.HTTPConnection, body: bytes) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                connection.putheader(name, value)
        connection.putheader("Connection", "close")

    def _refuse(self, status: int, code: str) -> None:
        answer = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self._leave()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer)

    def _cut(self) -> None:
        self._leave()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
