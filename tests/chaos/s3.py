"""S3 for the tests: a moto server in its own process, and settings and buckets for it and for Ceph's gateway."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline.storage.base import StorageSettings
from tests.chaos.rgw import ACCESS_KEY, SECRET_KEY

_MOTO = (
    "import signal; from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', 0, verbose=False); "
    "s.start(); print(s.get_host_and_port()[1], flush=True); signal.pause()"
)


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Runs a moto server; yields its endpoint."""
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


def settings_for(endpoint: str, **changes: Any) -> StorageSettings:
    """Storage settings with the tests' user; `changes` are other fields of StorageSettings."""
    return StorageSettings(**{**_credentials(endpoint), **changes})


def environment_for(endpoint: str) -> dict[str, str]:
    """The same settings as the environment variables of the AWS tools."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def storage_words(endpoint: str) -> list[str]:
    """The same settings as words of the command line."""
    return [f"storage.{name}={value}" for name, value in _credentials(endpoint).items()]


def _credentials(endpoint: str) -> dict[str, Any]:
    return {"endpoint_url": endpoint, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": "us-east-1"}


def make_bucket(endpoint: str, name: str | None = None) -> str:
    """Makes a bucket, of this name or a new one; returns its name."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    name = name or f"b{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    return name
