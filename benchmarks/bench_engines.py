"""Engines: each dense part of R50-FPN in torch (with our convolutions) and in OpenVINO, float32, in turn.

    python -m benchmarks.bench_engines [--runs 3] [--threads 1]

Seconds of processor time by default on one thread, which other work on the machine changes least: backbone, FPN and RPN
head at 800 x 1088, box head of 1,000 RoIs, mask head of 100. Prints a line of JSON for each round, then one of medians.
Which of the two `auto` takes is `model.inference.predictor.native_engine`'s to say, by such figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import print_figures
from model.inference import openvino_engine
from model.inference.fuse import for_prediction
from model.network import build_model
from model.spec import ModelSpec


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = build_model(ModelSpec(num_classes=90, norm="batch")).eval()
    with tempfile.TemporaryDirectory() as folder:
        openvino_engine.convert(network, Path(folder))
        openvino = openvino_engine.load(Path(folder), "float32", options.threads)
    engines = {"torch": for_prediction(network).dense_parts(), "openvino": openvino}
    rois = (torch.rand(100, 256, 14, 14), torch.randint(1, 91, (100,)))
    inputs = {"maps": (torch.rand(1, 3, 800, 1088),), "box": (torch.rand(1000, 256, 7, 7),), "mask": rois}
    rounds: list[dict[str, Any]] = []
    for number in range(options.runs + 1):  # the first is not counted
        row = {}
        for name, arguments in inputs.items():
            for engine, parts in engines.items():
                started = time.process_time()
                getattr(parts, name)(*arguments)
                row[f"{name} {engine} s"] = time.process_time() - started
            row[f"{name} ratio"] = row[f"{name} torch s"] / row[f"{name} openvino s"]
        if number:
            rounds.append(row)
            print(json.dumps({name: round(value, 3) for name, value in row.items()}), flush=True)
    print_figures({name: statistics.median(row[name] for row in rounds) for name in rounds[0]})


if __name__ == "__main__":
    main()
