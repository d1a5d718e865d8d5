"""The S3 servers of the tests: moto in a process of its own, quick; buckets and settings for it and for the gateway."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

from pipeline.storage.base import StorageSettings
from tests.chaos.rgw import ACCESS_KEY, SECRET_KEY

_MOTO = (
    "import signal; from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', 0, verbose=False); "
    "s.start(); print(s.get_host_and_port()[1], flush=True); signal.pause()"
)


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """A running moto; its endpoint."""
    server = subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        deadline_s = time.monotonic() + 60
        while not _answers(endpoint):
            assert time.monotonic() < deadline_s, "moto does not answer"
            time.sleep(0.05)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def settings_for(endpoint: str, **changes: object) -> StorageSettings:
    """How the tests' user reaches a server."""
    given = {"endpoint_url": endpoint, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": "us-east-1"}
    return StorageSettings(**{**given, **changes})


def environment_for(endpoint: str) -> dict[str, str]:
    """The same as the AWS tools read it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def storage_words(endpoint: str) -> list[str]:
    """The same as words of the command line."""
    given = {"endpoint_url": endpoint, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": "us-east-1"}
    return [f"storage.{name}={value}" for name, value in given.items()]


def make_bucket(endpoint: str) -> str:
    """A new bucket's name."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    name = f"b{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    return name
