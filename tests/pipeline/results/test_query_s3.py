"""A run in a bucket answers as on disk, and only what is asked for is fetched; against moto's server."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline.results import load_images, load_instances
from pipeline.results.export import export_run
from pipeline.storage import open_storage


@pytest.fixture
def bucket(monkeypatch, tmp_path) -> Iterator[str]:
    pytest.importorskip("moto.server")
    program = (
        "from moto.server import ThreadedMotoServer as S; import signal; s = S('127.0.0.1', 0, verbose=False); "
        "s.start(); print(s.get_host_and_port()[1], flush=True); signal.pause()"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for _ in range(100):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/results", method="PUT"), timeout=30).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    yield "s3://results/run"
    server.kill()
    server.wait()


def test_a_run_in_a_bucket(bucket, drawn_run):
    storage = open_storage(bucket)
    root = Path(drawn_run.uri)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            storage.write_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    pd.testing.assert_frame_equal(load_instances(bucket), load_instances(drawn_run.uri))
    pd.testing.assert_frame_equal(load_images(bucket), load_images(drawn_run.uri))
    filters = [("category", "==", "circle"), ("score", ">", 0.5)]
    some = load_instances(bucket, ["score", "rle_counts"], filters)
    pd.testing.assert_frame_equal(some, load_instances(drawn_run.uri, ["score", "rle_counts"], filters))
    assert len(some)
    assert export_run(bucket, "s3://results/yolo", "yolo") == 8
    assert {info.key for info in open_storage("s3://results/yolo").iter_objects()} >= {"data.yaml"}
