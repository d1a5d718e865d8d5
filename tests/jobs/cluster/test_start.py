"""A Ray of our own: where its workers run, what they import, and that it ends with the block.

Each case runs in a process of its own: a Ray that this session has started would be used as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.home import HOME

OWN_RAY = """
import json, os, sys
import ray
from jobs.cluster.start import cluster, total
from jobs.config.base import ClusterSection

def look():
    import random, pipeline
    return os.getcwd(), sys.path, pipeline.__file__, random.__file__

with cluster(ClusterSection(num_cpus=1, num_gpus=0)):
    seen = dict(zip(("folder", "path", "pipeline", "random"), ray.get(ray.remote(look).remote())))
    seen["totals"] = [total("CPU"), total("GPU")]
    with cluster(ClusterSection(num_cpus=2)):
        seen["inner"] = total("CPU")
    seen["after_inner"] = ray.is_initialized()
seen |= {"after": ray.is_initialized(), "driver": os.getcwd()}
print(json.dumps(seen))
"""
FOLDERS = """
import json, os
from pathlib import Path
import ray
from jobs.cluster import start
from jobs.config.base import ClusterSection
folders = []
ray.init = lambda **options: folders.append((os.getcwd(), len(os.listdir())))
ray.shutdown = lambda: None
for installed in (True, False):
    start.is_installed = lambda: installed
    with start.cluster(ClusterSection(num_cpus=1)):
        pass
print(json.dumps([0, *folders, Path(folders[0][0]).exists()]))
"""


def run(program: str, folder: Path) -> Any:
    """What a program prints as JSON, started in a folder with the packages on its path."""
    code = f"import sys; sys.path.insert(0, {str(HOME)!r})\n{program}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_workers_run_beside_our_packages_and_not_in_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the user\\'s random.py was imported')\n")
    seen = run(OWN_RAY, tmp_path)
    assert seen["folder"] not in (str(HOME), str(tmp_path)) and seen["driver"] == str(tmp_path)
    assert str(tmp_path) not in seen["path"] and str(tmp_path) not in seen["random"]
    assert seen["pipeline"] == str(HOME / "pipeline" / "__init__.py")
    assert seen["totals"] == [1, 0]
    assert (seen["inner"], seen["after_inner"], seen["after"]) == (1, True, False), "one that is there is used and left"


def test_ray_starts_from_an_empty_folder_where_we_are_installed_else_from_our_own(tmp_path: Path) -> None:
    _, (empty, num_files), (own, _), is_there = run(FOLDERS, tmp_path)
    assert num_files == 0 and empty not in (str(HOME), str(tmp_path)) and not is_there
    assert own == str(HOME)


def test_this_environment_has_us_installed(tmp_path: Path) -> None:
    program = "import json; from jobs.cluster.start import is_installed; print(json.dumps(is_installed()))"
    assert run(program, tmp_path) is True
    copied = tmp_path / "copy"
    shutil.copytree(HOME / "jobs", copied / "jobs")
    shutil.copytree(HOME / "pipeline", copied / "pipeline")
    assert run(f"import sys; sys.path.insert(0, {str(copied)!r})\n{program}", tmp_path) is False
