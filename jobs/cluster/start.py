"""The one place where Ray is started or joined."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from jobs.config.base import ClusterSection
from jobs.config.load import ConfigError
from jobs.home import HOME

START_TRIES = 3
ANSWER_S = 8.0  # within which the head of a cluster that is to be joined must answer
# The longest temporary folder that leaves room for Ray's sockets below it: 107 bytes, less
# /ray/session_2026-11-28_14-09-30_123456_4194304/sockets/plasma_store.
LONGEST_TMPDIR = 107 - 70
CORE_LOG = re.compile(rb"\[[^]]+\] \w+\.(cc|h):\d+: ")
ALLOWED = "allowed is a running cluster ('auto', 'host:6379', 'ray://host:10001'), or null to start one here"


@contextmanager
def cluster(section: ClusterSection) -> Iterator[None]:
    """Joins the cluster of `cluster.address`, or starts one on this machine and ends it afterwards.

    A Ray that this process has initialised already is used as it is and left running.

    Raises:
        ConfigError: no cluster at the address, or one that does not let us in; at most half a minute later.
        OSError: Ray does not start on this machine.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets its workers starve beside anything else
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU keep CUDA's own view
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with tempfile.TemporaryDirectory(prefix="maskfleet-") as empty, _short_tmpdir():
        # Ray puts the folder it is started from at the front of every worker's import path, and its workers run there.
        # In the user's folder a `model.py` or a `random.py` would take the place of ours or of Python's own.
        # So it is an empty one; our own only where a Python of this environment would not find our packages by itself.
        with contextlib.chdir(Path(empty) if is_installed() else HOME), _own_signals():
            _start(section) if section.address is None else _join(section.address)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            yield
        finally:
            # A dataset of an interrupted call goes on in its thread, and would log that Ray is gone.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            ray.shutdown()


def is_installed() -> bool:
    """Whether a fresh Python of this environment imports the packages of this very program, wherever it is started.

    False also where that Python does not answer within a minute: starting from our own folder works in any case.
    """
    program = "from importlib.util import find_spec; print(find_spec('maskfleet').origin)"
    try:
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and Path(done.stdout.strip()).resolve() == HOME / "maskfleet" / "__init__.py"


def _start(section: ClusterSection) -> None:
    """Starts Ray here; on a machine so busy that Ray's own 30 s for a start run out, tries again."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            with _without_core_log():
                ray.init(
                    address="local",
                    num_cpus=section.num_cpus,
                    num_gpus=section.num_gpus,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            if not tries_left or "timed out during startup" not in str(error):
                raise OSError(f"Ray does not start on this machine: {one_line(error)}") from error


def _join(address: str) -> None:
    """Joins a running cluster. Raises ConfigError where none answers, or it does not let us in."""
    _check_head(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    try:
        with _without_core_log():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # of many classes
        ray.shutdown()
        text = one_line(error)
        if "oken" in text and "authentication" in text:
            text = "the cluster asks for a token; set RAY_AUTH_TOKEN, or write it to ~/.ray/auth_token"
        elif "Failed to connect" in text or "timeout" in text:
            text = (
                "the cluster refuses the token; give its own one"
                if os.environ.get("RAY_AUTH_MODE") == "token"
                else "the cluster does not let us in; if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, "
                f"else see that it runs Ray {ray.__version__}"
            )
        raise ConfigError(f"cluster.address: {address}: {text}; {ALLOWED}") from error


def _check_head(address: str) -> None:
    """Looks whether a gRPC server answers at `host:port`; Ray itself would try for minutes.

    A gRPC server answers the opening words of HTTP/2 with a frame of its settings (RFC 9113, 3.4 and 6.5).

    Raises:
        ConfigError: nobody answers, or something else than a cluster.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or not host or not port.isdecimal():
        return  # Ray finds it or refuses it at once
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cluster.address: nobody answers at {address} ({one_line(error)}); {ALLOWED}") from None
    if answer[3:4] != b"\x04":
        raise ConfigError(f"cluster.address: what answers at {address} is no Ray cluster; {ALLOWED}")


def one_line(error: BaseException) -> str:
    """An error's text in one line of at most 300 characters, or the name of its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _own_signals() -> Iterator[None]:
    """Puts this process's handling of SIGTERM back in place, which Ray replaces as it starts and keeps.

    Ray's handler ends the process with exit code 1 or 15, without a word and before our own clean-up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # Ray's handler, in the middle of its start
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _without_core_log() -> Iterator[None]:
    """Keeps Ray's C++ core from logging to stderr what is no fault (restartable actors with large arguments).

    The core says that its level was set, and logs each failed try to connect, before the level holds: such lines
    ("[time level pid] file.cc:303: ...") are left out of what is written meanwhile.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            for line in written:
                if not CORE_LOG.match(line):
                    os.write(2, line)


@contextmanager
def _short_tmpdir() -> Iterator[None]:
    """Gives Ray a temporary folder of ours where the path of the system's leaves no room for its sockets."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_TMPDIR:
        yield
        return
    try:
        short = tempfile.mkdtemp(prefix="mf-", dir="/tmp")
    except OSError as error:
        raise ConfigError(
            f"the temporary folder {folder} has more than the {LONGEST_TMPDIR} bytes that Ray's sockets allow, and "
            f"/tmp cannot be used ({one_line(error)}); set RAY_TMPDIR to a shorter one"
        ) from None
    kept = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")}
    os.environ.update(dict.fromkeys(kept, short))
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(short, ignore_errors=True)


@dataclass(frozen=True)
class Nodes:
    """What each node of a cluster has: an amount for each resource ('CPU', 'GPU')."""

    resources: tuple[Mapping[str, float], ...]

    def total(self, resource: str) -> int:
        """How much of a resource they have in all."""
        return int(sum(node.get(resource, 0) for node in self.resources))

    def room(self, cpus: float, gpus: float) -> int:
        """How many workers that reserve these cores and GPUs find room, each on one of the nodes."""
        wanted = [(name, share) for name, share in (("CPU", cpus), ("GPU", gpus)) if share]
        return sum(min(int(node.get(name, 0) // share) for name, share in wanted) for node in self.resources)


def joined_nodes() -> Nodes:
    """The nodes of the Ray that this process is connected to."""
    return Nodes(tuple(node["Resources"] for node in ray.nodes() if node["Alive"]))


def nodes_of(section: ClusterSection) -> Nodes:
    """The nodes that a command would have: of `cluster.address`, joined for a moment; else this machine, unstarted.

    Raises:
        ConfigError, OSError: as `cluster`.
    """
    if ray.is_initialized():
        return joined_nodes()
    if section.address is not None:
        with cluster(section):
            return joined_nodes()
    from torch import cuda

    num_gpus = cuda.device_count() if section.num_gpus is None else section.num_gpus
    return Nodes(({"CPU": section.num_cpus or os.cpu_count() or 1, "GPU": num_gpus},))
