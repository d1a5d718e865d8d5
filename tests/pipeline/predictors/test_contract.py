"""The contract is public, needs no torch, and says in types what an example keeps."""

from __future__ import annotations

import subprocess
import sys

import maskfleet
from pipeline.predictors import contract
from pipeline.run_spec import RunCategory
from tests.paths import ROOT


def test_it_is_public_and_loads_no_torch() -> None:
    assert (maskfleet.Instances, maskfleet.Segmenter) == (contract.Instances, contract.Segmenter)
    assert maskfleet.Category is RunCategory and issubclass(maskfleet.RunFault, OSError)
    code = (
        "import sys\nfrom maskfleet import Category, Instances, RunFault, Segmenter\n"
        "assert not {'torch', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_answer_without_instances_needs_no_shapes() -> None:
    answer = contract.Instances(scores=[], labels=[], rles=[])
    assert answer.boxes is answer.masks is answer.mask_probs is None
