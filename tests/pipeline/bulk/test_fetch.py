"""Loading of planned images: changed files are told, results keep their order, extra channels must fit the photo."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest

from pipeline.bulk.corpus import plan_corpus
from pipeline.bulk.fetch import ImageLoader, StoreFault, StoreGuard, fetch_bytes, map_ahead
from pipeline.bulk.listing import PlannedImage, iter_corpus
from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedImage
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from pipeline.run_spec import InputSpec
from pipeline.storage.base import CredentialsError, Storage
from pipeline.storage.files import Location
from pipeline.storage.stores import open_storage
from tests.chaos.fault_proxy import FaultProxy
from tests.chaos.s3 import make_bucket, settings_for
from tests.pipeline.images.image_files import encoded, exif_of
from tests.pipeline.images.tiff_files import random_bands

LIMITS = DecodeLimits(timeout_s=20.0, memory_bytes=256 << 20)
PATTERN = "{folder}/../depth/{stem}.png"


def failure_of(limits: DecodeLimits, image: PlannedImage) -> Decoded:
    """The failure that reading an image gives in the place of its bytes."""
    failure = fetch_bytes(limits, image)
    assert isinstance(failure, Decoded) and failure.image is None
    return failure


def test_a_changed_or_vanished_file_has_a_status_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    (image,) = iter_corpus(str(tmp_path))
    assert fetch_bytes(DecodeLimits(), image) == b"one"
    assert failure_of(DecodeLimits(max_bytes=2), image).status == "too_large"
    path.write_bytes(b"two!")
    assert failure_of(DecodeLimits(), image).status == "changed"
    path.unlink()
    assert failure_of(DecodeLimits(), image).status == "not_found"


def test_a_file_of_the_planned_size_and_another_etag_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    failure = failure_of(LIMITS, PlannedImage("a.jpg", str(tmp_path / "a.jpg"), "another etag", 3))
    assert failure.status == "changed" and "another etag when planned" in str(failure.error)


def test_a_folder_is_unreadable_and_a_size_limit_holds_without_a_planned_size(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert failure_of(LIMITS, PlannedImage("folder", str(tmp_path / "folder"))).status == "unreadable"
    (tmp_path / "b.jpg").write_bytes(b"four")
    unlisted = PlannedImage("b.jpg", str(tmp_path / "b.jpg"))
    assert fetch_bytes(LIMITS, unlisted) == b"four"
    assert failure_of(DecodeLimits(max_bytes=3), unlisted).error == "4 bytes; the limit is 3"


@pytest.fixture
def faults() -> list[tuple[str, str]]:
    """(Part of the path, fault): what the store does to every request with such a path."""
    return []


@pytest.fixture
def bucket(moto: str, faults: list[tuple[str, str]]) -> Iterator[Storage]:
    """A bucket of three photos behind a proxy."""

    def plan(method: str, path: str) -> str | None:
        return next((fault for part, fault in faults if part in path), None)

    uri = f"s3://{make_bucket(moto)}"
    for name in ("photos/a.jpg", "photos/b.jpg", "photos/c.jpg", "run/run.json"):
        open_storage(uri, settings_for(moto)).write_bytes(name, b"x")
    with FaultProxy(moto, plan) as proxy:
        yield open_storage(uri, settings_for(proxy.url, num_retries=1))


def fetch(bucket: Storage, name: str, guard: StoreGuard | None = None) -> bytes | Decoded:
    return fetch_bytes(LIMITS, PlannedImage(name, bucket.uri_of(f"photos/{name}")), guard, bucket.settings)


@pytest.mark.parametrize("fault", ["expired", "skewed"])
def test_expired_credentials_are_no_fault_of_an_image(
    bucket: Storage, faults: list[tuple[str, str]], fault: str
) -> None:
    faults.append(("a.jpg", fault))
    with pytest.raises(CredentialsError):
        fetch(bucket, "a.jpg", StoreGuard(open_storage("/nowhere", bucket.settings), None))


@pytest.mark.parametrize("fault", ["denied", "503", "cut_before"])
def test_an_image_alone_is_at_fault_while_what_was_read_before_can_be_read(
    bucket: Storage, faults: list[tuple[str, str]], fault: str
) -> None:
    guard = StoreGuard(open_storage("/nowhere", bucket.settings), None)
    faults.append(("b.jpg", fault))
    assert fetch(bucket, "a.jpg", guard) == b"x"
    failure = fetch(bucket, "b.jpg", guard)
    assert isinstance(failure, Decoded) and failure.status == "unreadable"
    faults.append(("a.jpg", fault))  # what was read before cannot be read now
    with pytest.raises(StoreFault, match=r"b\.jpg.*cannot be read either.*a\.jpg"):
        fetch(bucket, "b.jpg", guard)
    faults.clear()
    assert fetch(bucket, "b.jpg", guard) == b"x"


@pytest.mark.parametrize(
    ("output", "corpus", "known"), [("run", None, "run.json"), ("", "photos", "list-type")], ids=["run.json", "listing"]
)
def test_before_any_image_run_json_or_the_listing_tell(
    bucket: Storage, faults: list[tuple[str, str]], output: str, corpus: str | None, known: str
) -> None:
    run = open_storage(bucket.uri_of(output) if output else "/nowhere", bucket.settings)
    guard = StoreGuard(run, None if corpus is None else bucket.uri_of(corpus))
    faults.append(("b.jpg", "denied"))
    failure = fetch(bucket, "b.jpg", guard)
    assert isinstance(failure, Decoded) and failure.status == "unreadable"
    faults.append((known, "denied"))
    with pytest.raises(StoreFault):
        fetch(bucket, "b.jpg", guard)


def test_a_name_that_no_store_has_is_the_images_own_fault(bucket: Storage) -> None:
    guard = StoreGuard(open_storage(bucket.uri_of("run"), bucket.settings), bucket.uri_of("photos"))
    for uri in (
        "s3://[x/a.jpg",
        "s3://",
        "http://host/a.jpg",
        "s3://no-such-bucket-of-ours/a.jpg",
        bucket.uri_of("a\0.jpg"),
    ):
        failure = fetch_bytes(LIMITS, PlannedImage("a", uri), guard, bucket.settings)
        assert isinstance(failure, Decoded) and failure.status == "unreadable", uri


def test_a_folder_that_is_gone_is_no_fault_of_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    guard = StoreGuard(open_storage(str(tmp_path / "run")), str(folder))
    missing = PlannedImage("b.jpg", str(folder / "b.jpg"))
    failure = fetch_bytes(LIMITS, missing, guard)
    assert isinstance(failure, Decoded) and failure.status == "not_found"
    (folder / "a.jpg").unlink()  # as an unmounted disk leaves it
    with pytest.raises(StoreFault, match="the folder is empty"):
        fetch_bytes(LIMITS, missing, guard)
    folder.rmdir()
    with pytest.raises(StoreFault):
        fetch_bytes(LIMITS, missing, guard)


def test_an_archived_object_has_a_status_of_its_own(bucket: Storage, moto: str) -> None:
    boto = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    boto.put_object(Bucket=bucket.uri.removeprefix("s3://"), Key="photos/a.jpg", Body=b"x", StorageClass="DEEP_ARCHIVE")
    failure = fetch(bucket, "a.jpg")
    assert isinstance(failure, Decoded) and failure.status == "archived" and "restored first" in str(failure.error)


def test_results_come_in_order_with_a_bounded_number_ahead() -> None:
    started: list[int] = []
    release = threading.Event()

    def double(item: int) -> int:
        started.append(item)
        if item == 0:
            release.wait(30)
        return 2 * item

    with ThreadPoolExecutor(4) as executor:
        results = map_ahead(executor, double, iter(range(20)), lookahead=3)
        threading.Timer(0.2, release.set).start()
        assert next(results) == 0
        assert len(started) <= 4, "three calls, and one more for the result that was taken"
        assert list(results) == list(range(2, 40, 2))
        assert list(map_ahead(executor, double, [], lookahead=3)) == []


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, LIMITS) as pool:
        yield pool


@pytest.fixture
def pair(tmp_path: Path) -> PlannedImage:
    """A photo, and its 16-bit depth image in another folder."""
    for folder in ("rgb", "depth"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rgb/a.jpg").write_bytes(encoded(random_bands("u1", 3), "JPEG", exif=exif_of(6)))
    (tmp_path / "depth/a.png").write_bytes(encoded(random_bands("u2", 1, 14, 11)[..., 0] * np.uint16(300)))
    return PlannedImage("rgb/a.jpg", str(tmp_path / "rgb/a.jpg"))


def load(pool: DecodePool, image: PlannedImage, num_bands: int = 4) -> Decoded:
    return ImageLoader(pool=pool, limits=LIMITS, num_bands=num_bands, extra_channels=PATTERN).load(image)


def test_segmentation_loads_a_photo_and_its_depth_as_training_does(pool: DecodePool, pair: PlannedImage) -> None:
    decoded = load(pool, pair)
    assert (decoded.status, decoded.height, decoded.width, decoded.exif_orientation) == ("ok", 14, 11, 6)
    depth = Path(pair.uri).parents[1] / "depth/a.png"
    annotated = AnnotatedImage(1, "a.jpg", Location(pair.uri), 14, 11, extra_paths=(Location(str(depth)),))
    np.testing.assert_array_equal(decoded.image, load_photo(annotated, in_channels=4)[0])


def test_extra_channels_that_do_not_fit_give_a_status_and_a_reason(pool: DecodePool, pair: PlannedImage) -> None:
    depth = Path(pair.uri).parents[1] / "depth/a.png"
    for num_bands, words in ((5, "it has 3 bands; 4 are wanted"), (1, "it has 1 bands; 1 are wanted in all")):
        decoded = load(pool, pair, num_bands)
        assert decoded.status == "unsupported_format" and words in str(decoded.error)
    depth.write_bytes(encoded(random_bands("u1", 1)[..., 0]))
    decoded = load(pool, pair)
    assert decoded.status == "corrupt" and decoded.image is None
    assert str(decoded.error).endswith("depth/a.png: 11 x 14 px, the photo 14 x 11")
    depth.write_bytes(b"text")
    assert load(pool, pair).status == "unsupported_format"
    depth.unlink()
    decoded = load(pool, pair)
    assert decoded.status == "not_found" and "depth/a.png" in str(decoded.error)
    Path(pair.uri).unlink()
    assert "depth" not in str(load(pool, pair).error)


def test_photos_of_two_stores_are_read_in_one_process(moto: str, tmp_path: Path) -> None:
    """Each call's settings lead to its store: no earlier one is remembered."""
    name = make_bucket(moto)
    right, wrong = settings_for(moto), settings_for("http://127.0.0.1:1", num_retries=0)
    open_storage(f"s3://{name}", right).write_bytes("a.jpg", b"photo")
    image = PlannedImage("a.jpg", f"s3://{name}/a.jpg")
    for settings, expected in ((right, b"photo"), (wrong, None), (right, b"photo")):
        data = fetch_bytes(LIMITS, image, None, settings)
        assert data == expected if expected else isinstance(data, Decoded) and data.status == "unreadable"


def test_a_corpus_in_a_bucket_is_listed_and_read_with_the_settings_of_the_run(moto: str, tmp_path: Path) -> None:
    name, settings = make_bucket(moto), settings_for(moto)
    bucket = open_storage(f"s3://{name}", settings)
    bucket.write_bytes("photos/a.jpg", b"photo")
    bucket.write_bytes("list.csv", f"uri\ns3://{name}/photos/a.jpg\n".encode())
    run = open_storage(str(tmp_path), settings)  # on a disk, and it knows how its photos are reached
    for number, source in enumerate(
        (InputSpec(uri=f"s3://{name}/photos"), InputSpec(uri=f"s3://{name}/list.csv", kind="list"))
    ):
        below = open_storage(f"{tmp_path}/{number}", run.settings)
        (image,) = plan_corpus(below, source, shard_size=1, num_workers=1).read_shard(0)
        assert fetch_bytes(LIMITS, image, None, below.settings) == b"photo"
