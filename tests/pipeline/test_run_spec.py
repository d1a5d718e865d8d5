"""A run's specification as JSON: the same bytes there and back, and older forms that are still read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.manifest import run_id_of, to_json
from pipeline.run_spec import (
    DecodeSpec,
    InputSpec,
    PredictorSpec,
    RefineSpec,
    RunCategory,
    RunModel,
    RunSpec,
    SegmentSpec,
    Slicing,
)

SPEC = RunSpec(
    schema_version=1,
    input=InputSpec(uri="/photos", since_run="/runs/1"),
    model=RunModel(sha256="ab" * 32, spec={"in_channels": 3}, categories=(RunCategory(4, "circle"),)),
    segment=SegmentSpec(score_threshold=0.05, slice=Slicing(512, 64, 0.5)),
    decode=DecodeSpec(max_bytes=10, max_pixels=20, max_frames=1, formats=("JPEG", "PNG"), scaled=True),
)
# As version 0.1.0 wrote it, with the id it had.
DOCUMENT: dict[str, Any] = {
    "schema_version": 1,
    "input": {
        "uri": "/photos",
        "kind": "folder",
        "pattern": "*",
        "uri_column": "uri",
        "extra_channels": None,
        "since_run": "/runs/1",
    },
    "model": {"sha256": "ab" * 32, "spec": {"in_channels": 3}, "categories": [{"id": 4, "name": "circle"}]},
    "segment": {
        "mode": "exact",
        "precision": "float32",
        "score_threshold": 0.05,
        "max_detections": 100,
        "mask_threshold": 0.5,
        "slice": {"size": 512, "overlap": 64, "merge_iou": 0.5},
    },
    "decode": {"max_bytes": 10, "max_pixels": 20, "max_frames": 1, "formats": ["JPEG", "PNG"], "scaled": True},
}


def test_it_is_the_document_that_runs_have_always_had() -> None:
    assert SPEC.to_json() == DOCUMENT
    assert RunSpec.from_json(DOCUMENT) == SPEC
    assert run_id_of(SPEC.to_json()) == run_id_of(DOCUMENT) == "0011474fedb52ff9"


def test_a_predictor_of_the_users_own_is_in_the_document_and_comes_back() -> None:
    predictor = PredictorSpec(name="mine:Mine", settings={"a": [1, {"b": None}]}, code_sha256="cd" * 32)
    spec = replace(SPEC, model=replace(SPEC.model, spec={}, predictor=predictor))
    document = spec.to_json()
    assert document["model"]["predictor"]["settings"] == {"a": [1, {"b": None}]}
    assert RunSpec.from_json(json.loads(to_json(document))) == spec and run_id_of(document) != run_id_of(DOCUMENT)
    assert SPEC.model.in_channels == spec.model.in_channels == 3
    assert replace(spec.model, predictor=replace(predictor, in_channels=4)).in_channels == 4


def test_sam_is_in_the_document_where_it_refines_and_comes_back() -> None:
    refine = RefineSpec(kind="sam2", name="facebook/sam2.1-hiera-tiny", revision="ab" * 20, sha256="cd" * 32)
    spec = replace(SPEC, segment=replace(SPEC.segment, refine=refine))
    document = spec.to_json()
    assert document["segment"].pop("refine") == vars(refine) and document == DOCUMENT
    assert RunSpec.from_json(json.loads(to_json(spec.to_json()))) == spec
    assert refine.title == "SAM 2 facebook/sam2.1-hiera-tiny cdcdcdcdcdcd"
    assert RefineSpec(sha256="ab" * 32).title == "SAM abababababab"


def test_a_run_without_an_engine_is_one_of_torch_and_other_engines_are_named() -> None:
    assert RunSpec.from_json(DOCUMENT).segment.engine == "torch"
    other = replace(SPEC, segment=replace(SPEC.segment, engine="openvino"))
    document = other.to_json()
    assert document["segment"].pop("engine") == "openvino" and document == DOCUMENT
    assert RunSpec.from_json(other.to_json()) == other and run_id_of(other.to_json()) != run_id_of(DOCUMENT)


def test_fields_that_an_older_run_lacks_take_their_defaults() -> None:
    spec = RunSpec.from_json({"segment": {"max_detections": 7}})
    assert (spec.segment.max_detections, spec.segment.score_threshold, spec.input.since_run) == (7, None, None)


def test_fields_that_a_newer_run_has_are_left_out() -> None:
    newer = {**DOCUMENT, "segment": {**DOCUMENT["segment"], "colour": "grey"}, "notes": []}
    assert RunSpec.from_json(newer) == SPEC and run_id_of(newer) != run_id_of(DOCUMENT)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"input": "photos"}, "input is str"),
        ({"model": []}, "model is list"),
        ({"model": {"categories": None}}, "NoneType"),
        ({"model": {"categories": ["circle"]}}, "str"),
        ({"model": {"categories": [{"id": 1}]}}, "name"),
        ({"decode": {"formats": None}}, "NoneType"),
        ({"segment": {"slice": 512}}, "int"),
        ({"model": {"predictor": "mine:Mine"}}, "str"),
        ({"segment": {"slice": {"size": 100, "overlap": 51, "merge_iou": 0.5}}}, "overlap is 51"),
    ],
)
def test_a_section_of_another_form_is_named(document: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunSpec.from_json(document)


def test_thresholds_of_classes_are_part_of_the_run_and_without_one_the_document_is_as_before() -> None:
    spec = replace(SPEC, segment=replace(SPEC.segment, score_thresholds={"circle": 0.4}))
    document = spec.to_json()
    assert document["segment"].pop("score_thresholds") == {"circle": 0.4} and document == DOCUMENT
    assert RunSpec.from_json(spec.to_json()) == spec


def test_the_highest_score_threshold_is_that_of_the_classes_that_the_run_has() -> None:
    classes = replace(SPEC.model, categories=(RunCategory(4, "circle"), RunCategory(5, "square")))

    def highest(**by_name: float) -> float | None:
        segment = replace(SPEC.segment, score_threshold=0.3, score_thresholds=by_name)
        return replace(SPEC, model=classes, segment=segment).highest_score_threshold

    assert [highest(), highest(circle=0.1), highest(circle=0.4), highest(circle=0.1, square=0.2)] == [
        0.3,
        0.3,
        0.4,
        0.2,
    ]
    assert RunSpec(schema_version=1).highest_score_threshold is None
