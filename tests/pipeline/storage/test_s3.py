"""S3 storage keeps the promises of `Storage`: on moto, with a faulty store, and (`pytest -m s3`) on a real gateway."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import multiprocessing
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import s3
from pipeline.storage.base import CredentialsError, ObjectArchived, StorageError, StorageSettings
from pipeline.storage.s3 import S3Storage
from pipeline.storage.stores import open_storage
from tests.chaos.fault_proxy import FAULTS, FaultProxy, random_faults, scripted_faults
from tests.chaos.rgw import ACCESS_KEY, SECRET_KEY, Rgw, free_port
from tests.chaos.s3 import make_bucket, settings_for


@pytest.fixture(params=["moto", pytest.param("rgw", marks=pytest.mark.s3)])
def server(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
def storage(server: str) -> S3Storage:
    """A prefix in a new bucket."""
    return S3Storage(f"s3://{make_bucket(server)}/some/prefix", settings_for(server))


# --- the promises of Storage


def test_what_is_written_is_read_back(storage: S3Storage) -> None:
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"second")
    assert storage.read_bytes("a/b.bin") == b"second"
    assert storage.stat("a/b.bin").size_bytes == 6
    etag = storage.stat("a/b.bin").etag
    parts = {(0, None): b"second", (1, 3): b"eco", (4, 9): b"nd", (6, 1): b"", (9, None): b"", (2, 0): b""}
    for (start, size), expected in parts.items():
        assert storage.read_object("a/b.bin", start, size) == (expected, etag)
    assert storage.exists("a/b.bin") and not storage.exists("a/c.bin")
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    for missing in (storage.read_bytes, storage.stat, storage.open_input):
        with pytest.raises(FileNotFoundError):
            missing("a/b.bin")


def test_empty_objects_and_odd_keys(storage: S3Storage) -> None:
    keys = ["", " ", "a b+c%20.jpg", "q?x=1&y#z", "ümläut/日本.jpg", "..dots", "tab\tand\"quote'.jpg"][1:]
    for key in keys:
        storage.write_bytes(key, key.encode())
    storage.write_bytes("empty", b"")
    assert storage.read_bytes("empty") == b""
    assert {info.key for info in storage.iter_objects()} == {*keys, "empty"}
    for key in keys:
        assert storage.read_bytes(key) == key.encode()
        assert storage.stat(key).size_bytes == len(key.encode())


def test_put_if_absent_keeps_the_first(storage: S3Storage) -> None:
    assert storage.put_if_absent("x", b"first")
    assert not storage.put_if_absent("x", b"second")
    assert not storage.put_if_absent("x", b"first")  # the same bytes are still another's
    assert storage.read_bytes("x") == b"first"
    storage.delete("x")
    assert storage.put_if_absent("x", b"second")


def test_listing_is_in_order_below_the_prefix_only(storage: S3Storage) -> None:
    outside = S3Storage(f"s3://{storage.bucket}/some", storage.settings)
    outside.write_bytes("prefix-and-more/x", b"")
    outside.write_bytes("prefix/", b"")  # a console's folder
    keys = ["a-b", "a.jpg", "a/1", "a/2/3", "a0", "b", "é"]
    for key in reversed(keys):
        storage.write_bytes(key, b"12")
    listed = list(storage.iter_objects())
    assert [info.key for info in listed] == sorted(keys)
    assert {info.size_bytes for info in listed} == {2}
    assert all(info.etag == storage.stat(info.key).etag for info in listed)
    assert [info.key for info in storage.iter_objects("a/")] == ["a/1", "a/2/3"]
    assert list(storage.iter_objects("nothing/")) == []


def test_listing_of_many_pages(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PAGE_KEYS", 7)
    keys = [f"k/{i:05d}" for i in range(35)]
    for key in reversed(keys):
        storage.write_bytes(key, b"")
    assert [info.key for info in storage.iter_objects("k/")] == keys
    assert [info.key for info in storage.iter_objects("k/", after=keys[9])] == keys[10:]
    assert [info.key for info in storage.iter_objects(after="k/00009x")] == keys[10:]


def test_many_objects_are_read_at_once_and_in_order(storage: S3Storage) -> None:
    keys = [f"m/{i}" for i in range(70)]
    for key in keys:
        storage.write_bytes(key, key.encode())
    assert list(storage.read_many(iter(keys))) == [key.encode() for key in keys]
    contents = storage.read_many(["m/0", "gone", "m/1"])
    assert next(contents) == b"m/0"
    with pytest.raises(FileNotFoundError):
        next(contents)


def test_random_reading_and_parquet(storage: S3Storage) -> None:
    data = bytes(range(256)) * 5000
    storage.write_bytes("big", data)
    file = storage.open_input("big")
    for start, count in ((0, 10), (1_000_000, 300_000), (77, 0), (len(data) - 5, 100), (3, 1)):
        file.seek(start)
        assert file.read(count) == data[start : start + count]
    assert file.seek(0, io.SEEK_END) == len(data) and file.read() == b""
    table = pa.table({"n": range(50_000), "s": [str(i) for i in range(50_000)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=5000)
    storage.write_bytes("t.parquet", sink.getvalue())
    assert pq.ParquetFile(storage.open_input("t.parquet")).read_row_group(7).equals(table.slice(35_000, 5000))


def test_an_object_that_changes_under_a_reader_is_an_error(storage: S3Storage) -> None:
    storage.write_bytes("x", bytes(1_000_000))
    file = storage.open_input("x")
    assert file.read(10) == bytes(10)
    storage.write_bytes("x", b"\1" * 1_000_000)
    file.seek(900_000)
    with pytest.raises(OSError, match="changed while it was read"):
        file.read(10)


def test_the_condition_is_proved_with_an_object_that_stays(storage: S3Storage) -> None:
    for _ in range(2):
        storage.check_put_if_absent("run.json", b"spec")
        assert [info.key for info in storage.iter_objects()] == ["run.json"]


def test_a_missing_bucket_is_named(server: str) -> None:
    storage = S3Storage("s3://no-such-bucket-here/x", settings_for(server, num_retries=1))
    calls = [lambda: storage.read_bytes("k"), lambda: storage.write_bytes("k", b""), lambda: [*storage.iter_objects()]]
    for call in calls:
        with pytest.raises(StorageError, match="no bucket 'no-such-bucket-here'"):
            call()
    with pytest.raises(StorageError, match="no bucket"):
        storage.check_put_if_absent("k", b"")


# --- a store that fails


@pytest.fixture(scope="module")
def proxies() -> Iterator[Callable[[str, bool], FaultProxy]]:
    """One proxy for each server, because a client for each endpoint takes long to make."""
    with contextlib.ExitStack() as stack:

        def start(endpoint: str, one_at_a_time: bool) -> FaultProxy:
            return stack.enter_context(FaultProxy(endpoint, slow_s=0.05, one_at_a_time=one_at_a_time))

        yield functools.cache(start)


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest,
    server: str,
    proxies: Callable[[str, bool], FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FaultProxy]:
    """A proxy before the server, without faults yet; the waits between retries are short."""
    monkeypatch.setattr(s3, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(s3, "_LONGEST_WAIT_S", 0.2)
    proxy = proxies(server, "moto" in request.node.name)
    proxy.wait_until_idle()
    proxy.counts.clear()
    yield proxy
    proxy.plan = lambda method, path: None


@pytest.fixture
def faulty(storage: S3Storage, proxy: FaultProxy) -> S3Storage:
    """The same objects as `storage`, reached through the proxy."""
    return S3Storage(storage.uri, replace(storage.settings, endpoint_url=proxy.url, num_retries=30))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_retried_and_put_if_absent_tells_the_truth(
    storage: S3Storage, faulty: S3Storage, proxy: FaultProxy, fault: str
) -> None:
    proxy.plan = scripted_faults(("/mine", fault), ("/mine", fault), method="PUT")
    assert faulty.put_if_absent("mine", b"data")
    assert not faulty.put_if_absent("mine", b"data")
    assert storage.read_bytes("mine") == b"data"
    assert storage.put_if_absent("theirs", b"data")
    proxy.plan = scripted_faults(("/theirs", fault), ("/theirs", fault), ("/theirs", fault))
    assert not faulty.put_if_absent("theirs", b"data")
    proxy.plan = scripted_faults(("/mine", fault), ("/big", fault), ("list-type", fault))
    faulty.write_bytes("big", bytes(range(256)) * 2000)
    assert faulty.read_bytes("mine") == b"data"
    assert [info.key for info in faulty.iter_objects()] == ["big", "mine", "theirs"]
    proxy.plan = scripted_faults(("/big", fault), ("/big", fault))
    assert faulty.read_bytes("big") == bytes(range(256)) * 2000
    proxy.plan = scripted_faults(("/mine", fault))
    faulty.delete("mine")
    assert not faulty.exists("mine")
    assert proxy.counts[fault] >= 6


def test_one_winner_under_random_faults(faulty: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = random_faults(0.3, seed=5)
    won: list[int] = []

    def write() -> None:
        won.extend(i for i in range(15) if faulty.put_if_absent(f"k/{i}", b"the same bytes from all"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(15))
    assert proxy.counts.total() - proxy.counts["ok"] > 20


def _race(n: int, storage: S3Storage, num_threads: int, barrier, wins) -> None:
    def write(name: str) -> None:
        for i in range(40):
            barrier.wait(300)
            if storage.put_if_absent(f"k/{i}", name.encode()):
                wins.put((i, name))

    threads = [threading.Thread(target=write, args=(f"{n}-{t}",)) for t in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_winner_of_eight_writers_forty_times(
    storage: S3Storage, faulty: S3Storage, request: pytest.FixtureRequest
) -> None:
    is_moto = "moto" in request.node.name  # which has one winner only through the proxy, in this process
    storage, num_processes = (faulty, 1) if is_moto else (storage, 4)
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(8), context.Queue()
    arguments = (storage, 8 // num_processes, barrier, wins)
    processes = [context.Process(target=_race, args=(n, *arguments)) for n in range(1, num_processes)]
    for process in processes:
        process.start()
    _race(0, *arguments)
    for process in processes:
        process.join(60)
    won = []
    with contextlib.suppress(queue.Empty):
        while True:
            won.append(wins.get(timeout=0.5))
    assert sorted(i for i, _ in won) == list(range(40))
    for i, name in won:
        assert storage.read_bytes(f"k/{i}") == name.encode()
    assert len({name for _, name in won}) > 1


def test_the_error_after_the_last_retry_says_how_many_there_were(faulty: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = lambda method, path: "503"
    faulty = S3Storage(faulty.uri, replace(faulty.settings, num_retries=3))
    with pytest.raises(OSError, match=r"get failed after 4 tries.*503 SlowDown injected") as caught:
        faulty.read_bytes("x")
    assert not isinstance(caught.value, FileNotFoundError)
    assert proxy.counts["503"] == 4


@pytest.mark.parametrize("limit", ["read_timeout_s", "request_timeout_s"])
def test_a_silent_server_is_given_up_in_time(
    faulty: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    proxy.plan = lambda method, path: "slow"
    monkeypatch.setattr(proxy, "slow_s", 2.0)
    timeout: dict[str, Any] = {limit: 0.5}
    impatient = S3Storage(faulty.uri, replace(faulty.settings, num_retries=0, **timeout))
    with pytest.raises(OSError, match="Timeout"):
        impatient.read_bytes("x")


def test_no_server_is_an_error_that_says_so() -> None:
    settings = settings_for(f"http://127.0.0.1:{free_port()}", num_retries=1)
    with pytest.raises(OSError, match=r"after 2 tries.*Could not connect"):
        S3Storage("s3://bucket", settings).read_bytes("x")


def test_parallel_requests_are_capped_for_the_process(faulty: S3Storage, proxy: FaultProxy) -> None:
    faulty.write_bytes("x", b"1")
    proxy.plan, proxy.most_parallel = lambda method, path: "slow", 0
    settings = replace(faulty.settings, max_parallel=3)
    storages = [S3Storage(faulty.uri, settings) for _ in range(12)]
    threads = [threading.Thread(target=storage.read_bytes, args=("x",)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 < proxy.most_parallel <= 3


class _Ignoring(S3Storage):
    """A store that ignores the condition, because its header is never sent."""

    def _request(self, method: str, key: str | None, **arguments):
        arguments.pop("IfNoneMatch", None)
        return super()._request(method, key, **arguments)


def test_a_store_that_ignores_the_condition_is_refused(storage: S3Storage) -> None:
    ignoring = _Ignoring(storage.uri, storage.settings)
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        ignoring.check_put_if_absent("run.json", b"spec")
    assert storage.read_bytes("run.json") == b"spec"
    accepted = _Ignoring(storage.uri, replace(storage.settings, conditional_put=False))
    accepted.check_put_if_absent("run.json", b"spec")
    assert accepted.put_if_absent("x", b"1") and not accepted.put_if_absent("x", b"2")


# --- credentials


def test_credentials_show_nowhere(server: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wrong = settings_for(server, secret_key="hunter2-very-secret", session_token="token-hunter3", num_retries=0)
    storage = S3Storage(f"s3://{make_bucket(server)}/x", wrong)
    shown = [repr(storage), repr(wrong), str(wrong), f"{wrong.secret_key}", repr(vars(wrong)), repr(asdict(wrong))]
    try:
        storage.write_bytes("k", b"")
    except Exception as error:
        assert error.__cause__ is None and error.__suppress_context__
        shown += [repr(error), str(error)]
    with pytest.raises(TypeError):
        json.dumps(asdict(wrong))
    text = " ".join([*shown, caplog.text])
    assert "hunter" not in text
    again = pickle.loads(pickle.dumps(storage))
    assert again.settings == wrong and again.settings.secret_key.reveal() == "hunter2-very-secret"


@pytest.mark.s3
def test_wrong_credentials_are_an_error_at_once(rgw: str) -> None:
    bucket = make_bucket(rgw)
    storage = S3Storage(f"s3://{bucket}", settings_for(rgw, secret_key="wrong"))
    with pytest.raises(CredentialsError, match="get is not allowed: 403 SignatureDoesNotMatch"):
        storage.read_bytes("x")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.check_put_if_absent("k", b"")
    with pytest.raises(PermissionError):
        S3Storage(f"s3://{bucket}", StorageSettings(endpoint_url=rgw, anonymous=True)).read_bytes("x")


def test_missing_credentials_are_an_error_at_once(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no credentials"):
        S3Storage("s3://bucket", StorageSettings(endpoint_url=moto, region="us-west-1")).read_bytes("x")


@pytest.mark.parametrize("fault", ["expired", "skewed"])
def test_credentials_that_no_request_can_pass_with_are_told_from_a_refusal(moto: str, fault: str) -> None:
    uri = f"s3://{make_bucket(moto)}"
    with FaultProxy(moto, scripted_faults(("photo", fault), ("photo", "denied"))) as proxy:
        storage = S3Storage(uri, settings_for(proxy.url))
        with pytest.raises(
            CredentialsError, match=r"get is not allowed: 40\d (ExpiredToken|RequestTimeTooSkewed)"
        ) as raised:
            storage.read_bytes("photo.jpg")
        assert proxy.counts[fault] == 1, "no second try"
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value), "it crosses the cluster"
        with pytest.raises(PermissionError) as refused:
            storage.read_bytes("photo.jpg")
        assert not isinstance(refused.value, CredentialsError)


def test_an_archived_object_is_told(moto: str) -> None:
    storage = S3Storage(f"s3://{make_bucket(moto)}", settings_for(moto))
    storage._request("put_object", "old.jpg", Body=b"x", StorageClass="GLACIER")
    with pytest.raises(ObjectArchived, match="must be restored first: 403 InvalidObjectState"):
        storage.read_bytes("old.jpg")


def test_credentials_of_the_environment_are_taken(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    storage = open_storage(f"s3://{make_bucket(moto)}/x", StorageSettings(region="eu-north-1"))
    storage.write_bytes("k", b"v")
    assert storage.read_bytes("k") == b"v"


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://key:secret-hunter2@bucket/x"])
def test_uris_that_name_no_bucket_are_refused(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.s3
def test_writes_survive_a_gateway_that_is_killed_and_comes_back(gateway: Rgw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_LONGEST_WAIT_S", 1.0)
    settings = settings_for(gateway.endpoint, num_retries=60)
    storage = S3Storage(f"s3://{make_bucket(gateway.endpoint)}", settings)
    won: list[int] = []

    def write() -> None:
        won.extend(i for i in range(60) if storage.put_if_absent(f"k/{i}", bytes(200_000)))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.3)
        gateway.kill_gateway()
        gateway.start_gateway()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(60))
    assert [info.size_bytes for info in storage.iter_objects()] == [200_000] * 60


# --- Arrow's own reader of the bucket


@pytest.mark.parametrize("prefix", ["run", "a b/é/#1?x=%20&+", "2024-01-01T00:00:00+01:00"])
def test_arrow_reads_the_same_objects(server: str, prefix: str) -> None:
    storage = S3Storage(f"s3://{make_bucket(server)}/{prefix}", settings_for(server))
    storage.write_bytes("instances/0/a.bin", b"rows")
    with storage.arrow_file_system().open_input_file(storage.arrow_path("instances/0/a.bin")) as file:
        assert file.read() == b"rows"
    with pytest.raises(FileNotFoundError):
        storage.arrow_file_system().open_input_file(storage.arrow_path("instances/0/b.bin"))


def test_arrow_has_the_endpoint_region_and_credentials_of_our_requests(
    moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def found(**settings: Any) -> dict[str, Any]:
        storage = S3Storage("s3://lab/run", StorageSettings(**settings))
        file_system = storage.arrow_file_system()
        assert file_system.equals(pickle.loads(pickle.dumps(file_system)))
        return dict(file_system.__reduce__()[1][0])  # what pickle is given: the only way to see them

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    given = found(endpoint_url=moto, region="eu-west-3", access_key="k", secret_key="s", session_token="t")
    names = ("access_key", "secret_key", "session_token", "anonymous", "region", "scheme", "endpoint_override")
    assert [given[name] for name in names] == ["k", "s", "t", False, "eu-west-3", "http", moto.removeprefix("http://")]
    assert found(endpoint_url=moto, anonymous=True)["anonymous"] is True

    (tmp_path / "credentials").write_text("[night]\naws_access_key_id=pk\naws_secret_access_key=ps\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "night")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example/s3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    from_profile = found()
    assert [from_profile[name] for name in names[:2]] == ["pk", "ps"]
    assert [from_profile[name] for name in names[4:]] == ["eu-central-1", "https", "store.example/s3"]
    assert from_profile["proxy_options"]["host"] == "proxy.example"
