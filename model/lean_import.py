"""Imports torchvision without torch's compiler, which would cost every process 145 MiB and 1.2 s.

Measured with torch 2.15 and torchvision 0.29.2 (ran): 543 MiB and 1.6 s of processor time, against 688 MiB and 2.8 s.
Nothing here uses the compiler. tests/model/test_lean_import.py tells when torchvision no longer asks for it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_COMPILER = ("torch._dynamo.utils", "torch._dynamo")


def import_torchvision() -> None:
    """Imports torchvision, with the compiler left out until somebody needs it.

    torchvision.ops takes one function of the compiler's by name, for deterministic RoIAlign to call. While it is
    imported, stand-ins are there for the compiler's modules; whatever is asked of them, then or later, the real ones
    answer.
    """
    if "torchvision" in sys.modules or any(name in sys.modules for name in _COMPILER):
        return
    sys.modules.update({name: _StandIn(name) for name in _COMPILER})
    try:
        importlib.import_module("torchvision")
    finally:
        _remove_stand_ins()


class _StandIn(ModuleType):
    """A module that imports the real one when it is asked for anything but `is_compile_supported`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # what makes it a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system itself asks for
            raise AttributeError(name)
        if name == "is_compile_supported":
            return lambda device: self._real().is_compile_supported(device)
        return getattr(self._real(), name)

    def _real(self) -> ModuleType:
        _remove_stand_ins()
        return importlib.import_module(self.__name__)


def _remove_stand_ins() -> None:
    for name in _COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
