"""Several hosts on one machine: network namespaces joined by veth pairs to a bridge in a namespace of its own.

They share the disk and the processors, but no network: neither the hosts nor the bridge are joined to the machine's own
network. A host is taken away by setting its interface down and killing its processes. Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path


class NoHosts(Exception):
    """Network namespaces cannot be made here; the message says why."""


class Hosts:
    """`count` hosts: namespaces `names` with `addresses` in one subnet. Use as a context manager."""

    def __init__(self, count: int) -> None:
        self.id = f"mf{secrets.token_hex(2)}"
        self.names = [f"{self.id}h{number}" for number in range(count)]
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]
        self.switch = f"{self.id}sw"
        self._programs: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        """Makes the namespaces. Raises NoHosts where that is not possible."""
        if shutil.which("ip") is None:
            raise NoHosts("`ip` is not here; apt-get install iproute2")
        if os.getuid() != 0:
            raise NoHosts("only root may make network namespaces")
        try:
            self._make()
        except NoHosts:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(self.names, self.addresses)):
            _ip("netns", "add", name)
            port = f"port{number}"
            _ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")

    def prefix(self, number: int) -> tuple[str, ...]:
        """The words before a command that run it on a host."""
        return ("ip", "netns", "exec", self.names[number])

    def start(self, number: int, command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a program on a host; it is killed when this process ends."""
        with open(log, "ab") as file:
            program = subprocess.Popen(
                [*self.prefix(number), *command],
                env=os.environ | environment,
                stdout=file,
                stderr=file,
                preexec_fn=_die_with_parent,
            )
        self._programs.append(program)
        return program

    def run(self, number: int, command: list[str], environment: dict[str, str], code: int | None = 0) -> str:
        """Runs a program on a host to its end; returns its output. `code` is the exit code it must have, None any."""
        done = subprocess.run(
            [*self.prefix(number), *command],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert code is None or done.returncode == code, done.stdout
        return done.stdout

    def take_away(self, number: int) -> None:
        """Cuts a host off the network, then kills everything that runs on it."""
        _ip("-n", self.names[number], "link", "set", "eth0", "down")
        self._kill(self.names[number])

    def close(self) -> None:
        """Kills everything that runs on the hosts, and removes them."""
        for name in (*self.names, self.switch):
            self._kill(name)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        for program in self._programs:
            program.wait()

    def _kill(self, name: str) -> None:
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise NoHosts(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")


def _die_with_parent() -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
