"""A real S3 server on loopback for the tests: Ceph's RADOS Gateway with one monitor and one in-memory OSD.

The daemons come from Debian's packages, see tests/debian.py. Needs no docker and no systemd; starts in about 13 s.
`python -m tests.chaos.rgw` starts a server by hand and prints its endpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from tests.debian import TRIPLET, Unavailable, library_folders, unpacked

ACCESS_KEY, SECRET_KEY = "test", "testsecret"
PACKAGES = ("radosgw", "ceph-mon", "ceph-osd")
_NUM_ATTEMPTS = 4  # a new monitor sometimes refuses its own cluster ('wrong fsid'); the next one does not


def ceph_root() -> Path:
    """The folder with the unpacked packages: $CEPH_ROOT, or one in the cache, filled on first use.

    Raises:
        Unavailable: the packages are neither there nor can they be fetched.
    """
    if root_set_by_user := os.environ.get("CEPH_ROOT"):
        return Path(root_set_by_user)
    if os.getuid() != 0:
        raise Unavailable("only root can run Ceph's daemons here; set CEPH_ROOT to a folder where you can")
    return unpacked("ceph", *PACKAGES)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Rgw:
    """A running gateway. Use as a context manager; `endpoint` takes path-style requests of one user."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        """Prepares a gateway; `start` starts it.

        Args:
            folder: where the daemons write; must not exist yet.
            address: address that the gateway listens on; its monitor and OSD stay on loopback.
            prefix: words before each daemon's command, such as `ip netns exec NAME`.
        """
        self.folder = folder
        self.address, self.prefix = address, prefix
        self.root = ceph_root()
        self.endpoint = ""
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Rgw:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts monitor, OSD and gateway, makes the user. Raises Unavailable with the end of a failed one's output."""
        base = self.folder
        for attempt in range(_NUM_ATTEMPTS):
            self.folder = base / str(attempt)
            try:
                return self._start()
            except Unavailable:
                self.stop()
                if attempt == _NUM_ATTEMPTS - 1:
                    raise
            except BaseException:
                self.stop()
                raise

    def _start(self) -> None:
        for name in ("mon", "osd", "log", "run"):
            (self.folder / name).mkdir(parents=True)
        port = free_port()
        self.endpoint = f"http://{self.address}:{port}"
        config = self.folder / "ceph.conf"
        self._environment = {
            "PATH": f"{self.root / 'usr/bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": ":".join(map(str, library_folders(self.root))),
            "PYTHONPATH": str(self.root / "usr/lib/python3/dist-packages"),
            "CEPH_CONF": str(config),
        }
        cluster_id = str(uuid.uuid4())
        monitor = f"[v1:127.0.0.1:{free_port()}/0]"
        config.write_text(_config(self.folder, self.root, cluster_id, monitor, f"{self.address}:{port}"))
        keyring = str(self.folder / "keyring")
        tool = "ceph-authtool"
        self._run(tool, "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        self._run(tool, keyring, "--gen-key", "-n", "client.admin", *caps)
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", monitor.replace("/0", ""), "--fsid", cluster_id, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring, *_AS_ROOT)
        self._spawn("mon", "ceph-mon", "-f", "-i", "a", *_AS_ROOT)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", str(uuid.uuid4()), *_AS_ROOT)
        self._run("ceph", "osd", "new", (self.folder / "osd" / "fsid").read_text().strip())
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=h")
        self._spawn("osd", "ceph-osd", "-f", "-i", "0", *_AS_ROOT)
        self.start_gateway()
        user = ["user", "create", "--uid=test", "--display-name=test"]
        self._run("radosgw-admin", *user, f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")

    def start_gateway(self) -> None:
        """Starts the gateway alone, as after `kill_gateway`; stored objects are still there."""
        self._spawn("rgw", "radosgw", "-f", "-n", "client.rgw.a", *_AS_ROOT)
        deadline_s = time.monotonic() + 120
        while not self._answers():
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    raise Unavailable(f"the {name} daemon ended: {self._end_of_output(name)}")
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the gateway does not answer: {self._end_of_output('rgw')}")
            time.sleep(0.1)

    def kill_gateway(self) -> None:
        """`kill -9` of the gateway."""
        gateway = self._daemons.pop("rgw")
        gateway.kill()
        gateway.wait()

    def stop(self) -> None:
        """Kills the daemons. The folder stays."""
        for daemon in reversed(list(self._daemons.values())):
            daemon.kill()
            daemon.wait()
        self._daemons.clear()

    def _answers(self) -> bool:
        if self.prefix:  # the gateway is reached from that namespace only
            host, port = self.endpoint.removeprefix("http://").split(":")
            probe = f"import socket; socket.create_connection(('{host}', {port}), 2)"
            return subprocess.run([*self.prefix, sys.executable, "-c", probe], capture_output=True).returncode == 0
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            [*self.prefix, *command],
            env=self._environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise Unavailable(f"`{' '.join(command[:3])} ...` failed: {done.stderr.strip()[-500:]}")

    def _spawn(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                [*self.prefix, *command],
                env=self._environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )

    def _end_of_output(self, name: str) -> str:
        return (self.folder / "log" / f"{name}.out").read_text(errors="replace")[-500:]


def _die_with_parent() -> None:
    """In a daemon: it is killed with the test run, and Ctrl-C goes to pytest alone."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


_AS_ROOT = ("--setuser", "root", "--setgroup", "root") if os.getuid() == 0 else ()


def _config(folder: Path, root: Path, cluster_id: str, monitor: str, endpoint: str) -> str:
    library = root / "usr/lib" / TRIPLET
    return f"""[global]
fsid = {cluster_id}
mon initial members = a
mon host = {monitor}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
log file = {folder}/log/$name.log
plugin dir = {library}/ceph
erasure code dir = {library}/ceph/erasure-code
osd class dir = {library}/rados-classes
keyring = {folder}/keyring
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[client.rgw.a]
rgw frontends = beast endpoint={endpoint}
rgw thread pool size = 64
rgw enable usage log = false
"""


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as work, Rgw(Path(work) / "rgw") as rgw:
        print(f"{rgw.endpoint} access key {ACCESS_KEY} secret key {SECRET_KEY}; Ctrl-C ends it", flush=True)
        signal.pause()
