"""Peer of `maskfleet segment`: a plain Ray Data pipeline with torchvision's Mask R-CNN and pycocotools.

It is the pipeline that a user would write from the public examples: Ray Data's `read_images`, torchvision's Mask R-CNN
with full-image masks in one actor, pycocotools' RLE, and `write_parquet`. The weights are from a Maskfleet checkpoint.
"""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from model.spec import ModelSpec


class PeerSegmenter:
    """Ray Data actor that turns a batch of images into rows, one for each instance.

    Args:
        checkpoint: folder of a Maskfleet checkpoint.
        num_threads: number of torch's threads.
        score_threshold, max_detections: limits of the network's detections, per image.
    """

    def __init__(self, checkpoint: str, num_threads: int, score_threshold: float, max_detections: int) -> None:
        import torch
        import torchvision  # noqa: F401  # the whole of it, before our code would import only parts of it

        from model.checkpoint import load_checkpoint

        torch.set_num_threads(num_threads)
        loaded = load_checkpoint(checkpoint)
        spec = loaded.spec.replace(score_threshold=score_threshold, max_detections=max_detections)
        self.model = torchvision_network(spec)
        self.model.load_state_dict(loaded.build().state_dict())
        self.ready = time.time()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        import torch
        from pycocotools import mask as coco

        names = ("path", "x1", "y1", "x2", "y2", "score", "label", "rle", "height", "width")
        rows: dict[str, list[Any]] = {name: [] for name in (*names, "ready", "rss_mib")}
        images = [
            torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255 for pixels in batch["image"]
        ]
        with torch.inference_mode():
            outputs = self.model(images)
        for path, image, output in zip(batch["path"], images, outputs):
            masks = (output["masks"][:, 0] >= 0.5).numpy().astype(np.uint8)
            for box, score, label, mask in zip(
                output["boxes"].tolist(), output["scores"].tolist(), output["labels"].tolist(), masks
            ):
                counts = coco.encode(np.asfortranarray(mask))["counts"]
                for name, value in zip(names, (path, *box, score, label, counts, *image.shape[1:])):
                    rows[name].append(value)
                rows["ready"].append(self.ready)
                rows["rss_mib"].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return {name: np.array(values, dtype=object if name == "rle" else None) for name, values in rows.items()}


def torchvision_network(spec: ModelSpec) -> Any:
    """torchvision's Mask R-CNN for a spec with an FPN: layers from the spec, everything else torchvision's own.

    Its state dict is that of `build_model(spec)`.
    """
    from torchvision.models.detection import MaskRCNN

    from model.network import build_model

    ours = build_model(spec)
    heads = ours.roi_heads
    return MaskRCNN(
        ours.backbone,
        min_size=spec.image_min_size,
        max_size=spec.image_max_size,
        image_mean=list(spec.image_mean),
        image_std=list(spec.image_std),
        rpn_anchor_generator=ours.rpn.anchor_generator,
        rpn_head=ours.rpn.head,
        rpn_pre_nms_top_n_test=spec.rpn_pre_nms_test,
        rpn_post_nms_top_n_test=spec.rpn_post_nms_test,
        box_head=heads.box_head,
        box_predictor=heads.box_predictor,
        box_score_thresh=spec.score_threshold,
        box_detections_per_img=spec.max_detections,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
    ).eval()


def segment_as_peer(
    images: str,
    checkpoint: str,
    out: str,
    *,
    batch_size: int,
    num_threads: int,
    score_threshold: float,
    max_detections: int,
) -> dict[str, float]:
    """Runs the pipeline over a folder of images and writes Parquet; needs an initialised Ray.

    Returns:
        `seconds` from the moment the actor was ready, `num_instances`, `peak_mib` of the actor's process.
    """
    import pyarrow.parquet as pq
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_images(images, include_paths=True, mode="RGB").map_batches(
        PeerSegmenter,
        fn_constructor_kwargs={
            "checkpoint": checkpoint,
            "num_threads": num_threads,
            "score_threshold": score_threshold,
            "max_detections": max_detections,
        },
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(num_threads)}},
    )
    dataset.write_parquet(out)
    ended = time.time()
    table = pq.read_table(out, columns=["ready", "rss_mib"])
    return {
        "seconds": ended - min(table["ready"].to_pylist()),
        "num_instances": table.num_rows,
        "peak_mib": max(table["rss_mib"].to_pylist()),
    }
