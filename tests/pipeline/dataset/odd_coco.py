# ruff: noqa: E501  # one kind a line
"""Odd COCO files: each kind is one change of a small valid file, with what is right for it.

The valid file has two photos of 60 x 80 px and two objects, of which the change touches the first. Outcomes: "read" as
if nothing were odd, "noted" (used, and named in a note), "ignored" (an ignore region, and named in a note), or
"refused" (named in the message of an AnnotationError).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
SQUARE = [[10, 10, 40, 10, 40, 40, 10, 40]]
RUNS = [10 * HEIGHT + 10, *([30, 30] * 29), 30, HEIGHT * WIDTH - (39 * HEIGHT + 40)]  # of the square's pixels

Content = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A change of the valid file, and what is right: one of the outcomes, and words of the note or message."""

    change: Callable[[Content], object]
    outcome: str
    words: str = ""


def valid_content() -> Content:
    """The valid file; the second category is used by the second object only."""
    images = [
        {"id": i, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH} for i, name in ((1, "a"), (2, "b"))
    ]
    objects = [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0,
         "segmentation": copy.deepcopy(SQUARE)},
        {"id": 6, "image_id": 2, "category_id": 2, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0,
         "segmentation": copy.deepcopy(SQUARE)},
    ]  # fmt: skip
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write_odd(folder: Path, kind: Kind) -> Path:
    """Writes the changed file and its photos, also those in `train/`; returns the JSON file's path."""
    for name in ("a.png", "b.png", "train/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    content = valid_content()
    kind.change(content)
    path = folder / "ann.json"
    path.write_text(json.dumps(content))
    return path


def _object(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["annotations"][0].update(values)


def _image(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["images"][0].update(values)


def _category(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["categories"][0].update(values)


def _without(part: str, key: str) -> Callable[[Content], object]:
    return lambda content: content[part][0].pop(key)


def _append(part: str, entry: object) -> Callable[[Content], object]:
    return lambda content: content[part].append(entry)


def _renamed_ids(image_id: object, listed_id: object) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        content["images"][0]["id"] = listed_id
        content["annotations"][0]["image_id"] = image_id

    return change


def _category_id(value: object) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        content["categories"][0]["id"] = content["annotations"][0]["category_id"] = value

    return change


def _keypoints(keypoints: object, names: tuple[str, ...] = ("head", "tail")) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        if names:
            content["categories"][0]["keypoints"] = list(names)
        content["annotations"][0]["keypoints"] = keypoints

    return change


def _dropped(key: str) -> Callable[[Content], object]:
    return lambda content: content.pop(key)


def _set(key: str, value: object) -> Callable[[Content], object]:
    return lambda content: content.update({key: value})


def _only_box(segmentation: object, **values: Any) -> Callable[[Content], object]:
    return _object(segmentation=segmentation, **values)


NAN, FAR = float("nan"), 3.5e8
KINDS: dict[str, Kind] = {
    "valid": Kind(lambda content: None, "read"),
    # ids
    "annotation id 0": Kind(_object(id=0), "read"),
    "annotation id absent": Kind(_without("annotations", "id"), "read"),
    "annotation id null": Kind(_object(id=None), "read"),
    "annotation id a text": Kind(_object(id="x-1"), "read"),
    "annotation id twice": Kind(_object(id=6), "noted", "annotation 6"),
    "annotation id a list": Kind(_object(id=[1]), "refused", "annotations[0] has id [1]; allowed is a whole number"),
    "annotation id true": Kind(_object(id=True), "refused", "annotations[0] has id True"),
    "image id a text": Kind(_renamed_ids("0001_d", "0001_d"), "read"),
    "image id a text of digits": Kind(_renamed_ids("139", "139"), "read"),
    "image id 1.0": Kind(_renamed_ids(1.0, 1), "read"),
    "image id 1.0 where it is listed": Kind(_renamed_ids(1, 1.0), "read"),
    "image id 1.5": Kind(_renamed_ids(1.5, 1.5), "refused", "has id 1.5"),
    "image id a text here, a number there": Kind(_renamed_ids("1", 1), "noted", "not listed (annotation 5)"),
    "image id null": Kind(_renamed_ids(None, None), "refused", "images[0] has id None"),
    "image id true": Kind(_renamed_ids(True, True), "refused", "has id True"),
    "image id a list": Kind(_renamed_ids([1], [1]), "refused", "images[0] has id [1]"),
    "image id an object": Kind(_renamed_ids({"a": 1}, {"a": 1}), "refused", "has id {'a': 1}"),
    "image id of 100 bits": Kind(_renamed_ids(10**30, 10**30), "refused", "up to 9223372036854775807"),
    "image id twice": Kind(_image(id=2), "refused", "image id 2 stands there twice, for 'a.png' and 'b.png'"),
    "image id an empty text": Kind(_renamed_ids("", ""), "refused", "image '' has id ''; allowed is a text that is not empty"),
    "image id absent": Kind(_without("images", "id"), "refused", "images[0] has no id"),
    "no image_id that is listed": Kind(
        lambda content: [entry.update(image_id=99) for entry in content["annotations"]],
        "refused",
        "no annotation is of an image that is listed: annotations have e.g. image_id 99, images have e.g. id 1",
    ),
    "image_id absent": Kind(_without("annotations", "image_id"), "refused", "annotation 5 has no image_id"),
    # categories
    "category_id absent": Kind(_without("annotations", "category_id"), "refused", "annotation 5 has no category_id"),
    "category id 0": Kind(_category_id(0), "read"),
    "category id 1.0": Kind(_object(category_id=1.0), "read"),
    "category id 1.5": Kind(_category_id(1.5), "refused", "categories[0] has id 1.5"),
    "category id a text": Kind(_category_id("1"), "refused", "category '1' has id '1'"),
    "category id true": Kind(_category_id(True), "refused", "has id True"),
    "category id negative": Kind(_category_id(-5), "refused", "category -5 has id -5; allowed is a whole number from 0"),
    "category id of 32 bits": Kind(_category_id(3_000_000_000), "refused", "up to 2147483647"),
    "category id of 64 bits": Kind(_category_id(2**63), "refused", "up to 2147483647"),
    "category id not declared": Kind(_object(category_id=9), "refused", "annotation 5 has category_id 9, which is not"),
    "category id twice": Kind(_category(id=2), "refused", "category id 2 stands there twice"),
    "category name twice": Kind(_category(name="dog"), "refused", "category name 'dog' stands there twice"),
    "category name empty": Kind(_category(name=""), "refused", "category 1 has name ''"),
    "category name a number": Kind(_category(name=1), "refused", "category 1 has name 1"),
    "category name absent": Kind(_without("categories", "name"), "refused", "category 1 has no name"),
    "category name of other case": Kind(_category(name="Dog "), "noted", "'Dog ' and 'dog'"),
    "category name in another Unicode form": Kind(
        lambda content: [c.update(name=n) for c, n in zip(content["categories"], ("caf\u00e9", "cafe\u0301"))],
        "noted",
        "capitals, blanks or Unicode forms",
    ),
    "category null": Kind(_append("categories", None), "refused", "categories[2] is None"),
    "category never used": Kind(_append("categories", {"id": 0, "name": "root"}), "noted", "('root')"),
    "no category": Kind(_set("categories", []), "refused", "which is not declared"),
    "categories null": Kind(_set("categories", None), "refused", "no list 'categories'"),
    "labelled_category_ids not declared": Kind(_image(labelled_category_ids=[1, 99]), "refused", "99, which is not"),
    "labelled_category_ids a text": Kind(_image(labelled_category_ids="1"), "refused", "labelled_category_ids '1'"),
    # images
    "height absent": Kind(_without("images", "height"), "refused", "image 1 has no height"),
    "height null": Kind(_image(height=None), "refused", "image 1 has height None; allowed is a whole number"),
    "height a text": Kind(_image(height="60"), "refused", "image 1 has height '60'"),
    "height 60.0": Kind(_image(height=60.0), "read"),
    "height -1": Kind(_image(height=-1), "refused", "image 1 has height -1; allowed is a whole number from 1"),
    "height of another photo": Kind(_image(height=61), "read"),  # skipped by name when photos are read
    "image of too many pixels": Kind(_image(height=10**5, width=10**5), "refused", "image 1 is of 100000 x 100000 pixels"),
    "file_name absent": Kind(_without("images", "file_name"), "refused", "image 1 has no file_name"),
    "file_name null": Kind(_image(file_name=None), "refused", "image 1 has file_name None"),
    "file_name empty": Kind(_image(file_name=""), "refused", "image 1 has file_name ''"),
    "file_name a number": Kind(_image(file_name=5), "refused", "image 1 has file_name 5"),
    "file_name with NUL": Kind(_image(file_name="a\0.png"), "refused", r"image 1 has file_name 'a\x00.png'"),
    "file_name twice": Kind(_image(file_name="b.png"), "refused", "images 1 and 2 have one file_name 'b.png'"),
    "file_name twice, written otherwise": Kind(_image(file_name="./b.png"), "refused", "images 1 and 2 have one"),
    "file_name with a backslash": Kind(_image(file_name="train\\a.png"), "read"),
    "file_name of 300 characters": Kind(_image(file_name="x" * 300), "read"),  # skipped by name when photos are read
    "file_name of a web address": Kind(_image(file_name="http://example.org/a.png"), "read"),
    "image null": Kind(_append("images", None), "refused", "images[2] is None; allowed is an object"),
    "images null": Kind(_set("images", None), "refused", "no list 'images'"),
    # annotations
    "annotation null": Kind(_append("annotations", None), "refused", "annotations[2] is None; allowed is an object"),
    "annotations an object": Kind(_set("annotations", {}), "refused", "'annotations' is {}; allowed is a list"),
    "info null": Kind(_set("info", None), "read"),
    "info with NaN": Kind(_set("info", {"version": NAN}), "read"),
    "iscrowd absent": Kind(_without("annotations", "iscrowd"), "read"),
    "iscrowd null": Kind(_object(iscrowd=None), "read"),
    "iscrowd false": Kind(_object(iscrowd=False), "read"),
    "iscrowd 0.0": Kind(_object(iscrowd=0.0), "read"),
    "iscrowd a text 0": Kind(_object(iscrowd="0"), "refused", "annotation 5 has iscrowd '0'"),
    "iscrowd a text false": Kind(_object(iscrowd="false"), "refused", "annotation 5 has iscrowd 'false'"),
    "iscrowd a list": Kind(_object(iscrowd=[0]), "refused", "annotation 5 has iscrowd [0]"),
    "iscrowd 2": Kind(_object(iscrowd=2), "refused", "annotation 5 has iscrowd 2; allowed is 0, 1, true, false or null"),
    "area absent": Kind(_without("annotations", "area"), "read"),
    "area null": Kind(_object(area=None), "read"),
    "area a text": Kind(_object(area="900"), "refused", "annotation 5 has area '900'"),
    "area NaN": Kind(_object(area=NAN), "refused", "annotation 5 has area nan"),
    "area negative": Kind(_object(area=-1), "refused", "annotation 5 has area -1; allowed is a number from 0 to 10**12"),
    "area infinite": Kind(_object(area=float("inf")), "refused", "annotation 5 has area inf"),
    "area of 308 digits": Kind(_object(area=1e308), "refused", "annotation 5 has area 1e+308"),
    # boxes
    "bbox absent": Kind(_without("annotations", "bbox"), "noted", "without a bbox that can be used"),
    "bbox null": Kind(_object(bbox=None), "noted", "take that of the mask (annotation 5)"),
    "bbox empty": Kind(_object(bbox=[]), "noted", "take that of the mask (annotation 5)"),
    "bbox of three": Kind(_object(bbox=[1, 2, 3]), "noted", "take that of the mask"),
    "bbox of negative width": Kind(_object(bbox=[40, 10, -30, 30]), "noted", "take that of the mask"),
    "bbox of no width": Kind(_object(bbox=[10, 10, 0, 30]), "noted", "take that of the mask"),
    "bbox outside, mask inside": Kind(_object(bbox=[500, 500, 30, 30]), "noted", "take that of the mask"),
    "bbox with null": Kind(_object(bbox=[None, 10, 30, 30]), "refused", "annotation 5 has bbox[0] None"),
    "bbox with NaN": Kind(_object(bbox=[NAN, 10, 30, 30]), "refused", "annotation 5 has bbox[0] nan"),
    "bbox with infinity": Kind(_object(bbox=[10, 10, float("inf"), 30]), "refused", "annotation 5 has bbox[2] inf"),
    "bbox of texts": Kind(_object(bbox=["10", 10, 30, 30]), "refused", "annotation 5 has bbox[0] '10'"),
    "bbox with true": Kind(_object(bbox=[True, 10, 30, 30]), "refused", "annotation 5 has bbox[0] True"),
    "bbox an object": Kind(_object(bbox={"x": 1}), "refused", "annotation 5 has bbox {'x': 1}"),
    # polygons
    "segmentation absent": Kind(_without("annotations", "segmentation"), "ignored", "it has no segmentation"),
    "segmentation null": Kind(_only_box(None), "ignored", "it has no segmentation (annotation 5)"),
    "segmentation empty": Kind(_only_box([]), "ignored", "no polygon of three points (annotation 5)"),
    "polygon empty": Kind(_only_box([[]]), "ignored", "no polygon of three points"),
    "polygon of one point": Kind(_only_box([[5, 5]]), "ignored", "no polygon of three points"),
    "polygon of two points": Kind(_only_box([[10, 10, 50, 50]]), "ignored", "no polygon of three points"),
    "polygon of half a point": Kind(_only_box([[10, 10, 50, 10, 50, 50, 10]]), "ignored", "no polygon of three"),
    "polygon of two points beside another": Kind(_only_box([*SQUARE, [1, 1, 2, 2]]), "noted", "left out (annotation 5)"),
    "polygon that is a line": Kind(
        _only_box([[10, 10, 40, 10, 40, 10]], bbox=[10, 10, 30, 0]), "ignored", "its mask has no area"
    ),
    "polygon smaller than a pixel": Kind(
        _only_box([[10.6, 10.6, 10.7, 10.6, 10.7, 10.7]], bbox=[10.6, 10.6, 0.1, 0.1], area=0.01), "noted", "a pixel"
    ),
    "polygon outside": Kind(
        _only_box([[100, 100, 140, 100, 140, 140]], bbox=[100, 100, 40, 40]), "noted", "outside their image"
    ),
    "polygon over the border": Kind(_only_box([[60, 40, 90, 40, 90, 90]], bbox=[60, 40, 30, 50]), "read"),
    "polygon with NaN": Kind(_only_box([[10, NAN, 40, 10, 40, 40]]), "refused", "annotation 5 has segmentation[0][1] nan"),
    "polygon far away": Kind(_only_box([[10, 10, FAR, 10, 40, 40]]), "refused", "segmentation[0][2] 350000000.0"),
    "polygon with null": Kind(_only_box([[10, None, 40, 10, 40, 40]]), "refused", "segmentation[0][1] None"),
    "polygon of texts": Kind(_only_box([["10", 10, 40, 10, 40, 40]]), "refused", "segmentation[0][0] '10'"),
    "polygon of pairs": Kind(_only_box([[[10, 10], [40, 10], [40, 40]]]), "refused", "segmentation[0][0] [10, 10]"),
    "polygon not in a list": Kind(_only_box([10, 10, 40, 10, 40, 40]), "refused", "segmentation[0] 10; allowed is a list"),
    "segmentation a text": Kind(_only_box("poly"), "refused", "annotation 5 has segmentation 'poly'"),
    "neither mask nor box": Kind(_only_box(None, bbox=None), "refused", "annotation 5 has neither a mask"),
    # RLE
    "RLE of run lengths": Kind(_only_box({"size": [HEIGHT, WIDTH], "counts": RUNS}), "read"),
    "RLE of a run of 64 bits": Kind(_only_box({"size": [HEIGHT, WIDTH], "counts": [2**63, 9]}), "ignored", "cannot be read"),
    "RLE of runs whose sum is of 64 bits": Kind(
        _only_box({"size": [HEIGHT, WIDTH], "counts": [2**62] * 4 + [HEIGHT * WIDTH]}), "ignored", "cannot be read"
    ),
    "RLE of another size": Kind(_only_box({"size": [WIDTH, HEIGHT], "counts": RUNS}), "ignored", "of another size"),
    "RLE of too few runs": Kind(_only_box({"size": [HEIGHT, WIDTH], "counts": [10, 20]}), "ignored", "cannot be read"),
    "RLE of negative runs": Kind(
        _only_box({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}), "ignored", "cannot be read"
    ),
    "RLE of garbage": Kind(_only_box({"size": [HEIGHT, WIDTH], "counts": "\x7f!"}), "ignored", "cannot be read"),
    "RLE empty": Kind(_only_box({"size": [HEIGHT, WIDTH], "counts": ""}), "ignored", "cannot be read"),
    "RLE of too few pixels": Kind(_only_box({"size": [HEIGHT, WIDTH], "counts": "0101"}), "ignored", "all pixels"),
    "RLE of no pixel": Kind(
        _only_box({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, bbox=None), "refused", "neither a mask"
    ),
    "RLE without counts": Kind(_only_box({"size": [HEIGHT, WIDTH]}), "refused", "annotation 5 has no segmentation.counts"),
    "RLE without size": Kind(_only_box({"counts": RUNS}), "refused", "annotation 5 has no segmentation.size"),
    "RLE in a list": Kind(_only_box([{"size": [HEIGHT, WIDTH], "counts": RUNS}]), "refused", "segmentation[0] {'size'"),
    # keypoints
    "keypoints": Kind(_keypoints([10, 10, 2, 0, 0, 0]), "read"),
    "keypoints null": Kind(_keypoints(None), "read"),
    "keypoints empty": Kind(_keypoints([]), "read"),
    "keypoints outside": Kind(_keypoints([500, 10, 2, 0, 0, 0]), "read"),
    "keypoints of one name of two": Kind(_keypoints([10, 10, 2]), "refused", "annotation 5 has 3 numbers in keypoints"),
    "keypoints of four names": Kind(_keypoints([10, 10, 2] * 4), "refused", "allowed are 6, three for each of 2 names"),
    "keypoints no triples": Kind(_keypoints([10, 10, 2, 5, 5]), "refused", "has 5 numbers in keypoints"),
    "keypoints with NaN": Kind(_keypoints([NAN, 10, 2, 0, 0, 0]), "refused", "annotation 5 has keypoints[0] nan"),
    "keypoints with null": Kind(_keypoints([None, 10, 2, 0, 0, 0]), "refused", "annotation 5 has keypoints[0] None"),
    "keypoints of visibility 5": Kind(_keypoints([10, 10, 5, 0, 0, 0]), "refused", "the visibilities [5.0, 0.0]"),
    "keypoints without names": Kind(_keypoints([10, 10, 2], ()), "noted", "no category names keypoints"),
    "keypoint names twice": Kind(_keypoints([10, 10, 2, 0, 0, 0], ("a", "a")), "refused", "category 1 names a keypoint twice"),
    "keypoint name empty": Kind(_keypoints([10, 10, 2, 0, 0, 0], ("a", "")), "refused", "category 1 has keypoints[1] ''"),
    "num_keypoints negative": Kind(_object(num_keypoints=-1), "refused", "annotation 5 has num_keypoints -1"),
    "keypoint names of two layouts": Kind(
        lambda content: [c.update(keypoints=[c["name"]]) for c in content["categories"]], "refused", "different keypoints"
    ),
}  # fmt: skip


ODD_VALUES: tuple[Any, ...] = (
    None, "x", "0", "", NAN, -1, 0, 1.5, 1e30, [], {}, True, False, 10**30, 2**31, 2**63, [1], ["a"], {"a": 1}, "\ud800", "\0",
    [NAN], 1e-320, -0.0, 10**6, -1e6, "../../x", "/", "..", "http://x/y.png", "s3:///x", "train\\a.png", [5, 5, 5, 5],
    [0, 0, 1e6, 1e6], [79.9, 59.9, 1e-9, 1e-9], [[1, 1, 1, 1, 1, 1]], {"size": [60, 80], "counts": "x"},
    {"size": [60, 80], "counts": [4800]}, {"size": [1, 1], "counts": [0, 1]},
)  # fmt: skip


def random_damage(random: Random) -> Content:
    """The valid file, sometimes with keypoints, an RLE or labelled categories, after one to three random changes."""
    content = valid_content()
    if random.random() < 0.3:
        _keypoints([10, 10, 2, 0, 0, 0])(content)
    if random.random() < 0.3:
        _object(segmentation={"size": [HEIGHT, WIDTH], "counts": list(RUNS)})(content)
    if random.random() < 0.2:
        _image(labelled_category_ids=[1, 2])(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder, key = random.choice([place for place in _places(content)])
        choice = random.random()
        if choice < 0.15:
            del holder[key]
        elif choice < 0.25 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(random.choice(ODD_VALUES))
    return content


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a parsed JSON value, as the object or list that holds it and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
