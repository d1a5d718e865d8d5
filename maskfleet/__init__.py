"""Public names, each imported when it is first asked for; `python -m maskfleet` is the program.

`import maskfleet` therefore loads nothing else. `_MODULES` says which module each name comes from, and its name there
where that is another.
"""

TYPE_CHECKING = False  # not from typing: a `typing.py` in the current folder would run before the path is put right
if TYPE_CHECKING:
    from typing import Any

    from jobs.checkpoints import open_checkpoint as load_checkpoint  # noqa: F401 (its public name)
    from jobs.predict import load_predictor as load_predictor
    from model.spec import ModelSpec as ModelSpec
    from pipeline.dataset.formats.reading import load_annotations as load_annotations
    from pipeline.evaluation.compare import compare as compare
    from pipeline.evaluation.metrics import Metrics as Metrics
    from pipeline.evaluation.metrics import evaluate_run as evaluate_run
    from pipeline.manifest import open_run as open_run
    from pipeline.results.export import crops as crops
    from pipeline.results.export import to_coco as to_coco
    from pipeline.results.export import to_coco_results as to_coco_results
    from pipeline.results.export import to_polygons as to_polygons
    from pipeline.results.export import to_yolo as to_yolo
    from pipeline.results.history import load_history as load_history
    from pipeline.results.render import contact_sheet as contact_sheet
    from pipeline.results.render import overlay as overlay
    from pipeline.tables import counts as counts
    from pipeline.tables import decode_mask as decode_mask
    from pipeline.tables import decode_masks as decode_masks
    from pipeline.tables import instances_dataset as instances_dataset
    from pipeline.tables import iter_instances as iter_instances
    from pipeline.tables import iter_shards as iter_shards
    from pipeline.tables import load_images as load_images
    from pipeline.tables import load_instances as load_instances

    __version__: str

_MODULES = {
    "__version__": "jobs.home:VERSION",
    "Metrics": "pipeline.evaluation.metrics",
    "ModelSpec": "model.spec",
    "compare": "pipeline.evaluation.compare",
    "contact_sheet": "pipeline.results.render",
    "counts": "pipeline.tables",
    "crops": "pipeline.results.export",
    "decode_mask": "pipeline.tables",
    "decode_masks": "pipeline.tables",
    "evaluate_run": "pipeline.evaluation.metrics",
    "instances_dataset": "pipeline.tables",
    "iter_instances": "pipeline.tables",
    "iter_shards": "pipeline.tables",
    "load_annotations": "pipeline.dataset.formats.reading",
    "load_checkpoint": "jobs.checkpoints:open_checkpoint",
    "load_history": "pipeline.results.history",
    "load_images": "pipeline.tables",
    "load_instances": "pipeline.tables",
    "load_predictor": "jobs.predict",
    "open_run": "pipeline.manifest",
    "overlay": "pipeline.results.render",
    "to_coco": "pipeline.results.export",
    "to_coco_results": "pipeline.results.export",
    "to_polygons": "pipeline.results.export",
    "to_yolo": "pipeline.results.export",
}
__all__ = sorted(name for name in _MODULES if not name.startswith("_"))


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module 'maskfleet' has no attribute {name!r}")
    from importlib import import_module

    from maskfleet.packages import absence, check_packages

    check_packages()
    module, _, attribute = _MODULES[name].partition(":")
    try:
        value = getattr(import_module(module), attribute or name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(absence(f"maskfleet.{name}", error), name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> "list[str]":
    return sorted({*globals(), *_MODULES})
