"""The three packages behind `maskfleet` (model, pipeline, jobs), and modules of the user's that take their place."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

PACKAGES = ("model", "pipeline", "jobs")
HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def check_packages() -> None:
    """Makes sure that `model`, `pipeline` and `jobs` are those of this program.

    Raises:
        ImportError: another module or folder of that name comes first on Python's path, or one of the packages is
            not there; the message names them and what to do.
    """
    for name in PACKAGES:
        path = _path_of(name)
        own = os.path.join(HOME, name)
        if path is None:
            raise ImportError(f"Maskfleet's own package {own} cannot be imported; install Maskfleet again", name=name)
        if os.path.realpath(path) not in (own, os.path.join(own, "__init__.py")):
            raise ImportError(
                f"{path} is imported as {name!r} in place of Maskfleet's own package {own}; rename {path} or start "
                "Python in another folder",
                name=name,
                path=path,
            )


def absence(what: str, error: ModuleNotFoundError) -> str:
    """The sentence for a command or name that needs a package which a smaller installation leaves out.

    Raises:
        ModuleNotFoundError: the given one, where what is missing is one of our own modules.
    """
    package = (error.name or "").split(".")[0]
    if package in ("", "maskfleet", *PACKAGES):
        raise error
    return (
        f"{what} needs {package}, which is not installed here; install Maskfleet with its dependencies (no --no-deps)"
    )


def _path_of(name: str) -> str | None:
    """The file or folder that `import name` gives, or has given already; None where there is none."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    spec = find_spec(name)
    if spec is None:
        return None
    return spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or ()), None)
