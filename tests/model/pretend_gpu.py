"""A GPU that is not there: tensors that say they are on one and compute on the CPU, and a count of the host's waits.

Code that runs under `PretendGpu` takes its branches for GPUs. What would make the host wait for a real one is counted:
reading a number (`item`, `bool`, `tolist`), results whose size only the device knows (`nonzero`, boolean indices,
`masked_select`, suppression, ...), and transfers in either direction that are not asynchronous. `torch.cuda`'s own
judge is `torch.cuda.set_sync_debug_mode`, see `benchmarks/gpu_check.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
SIZE_ON_DEVICE = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::equal"),
    *("aten::_unique2", "aten::unique_consecutive", "aten::unique_dim", "torchvision::nms", "aten::argwhere"),
}
NEW = (Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor)


class PretendTensor(Tensor):
    """A tensor of the pretended GPU; `held` has the values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]  # as torch documents it
        raise AssertionError(f"{func} of the pretended GPU's tensors outside of PretendGpu")


def inner_of(value: Any) -> Any:
    return value.held if isinstance(value, PretendTensor) else value


def pretend(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) and not isinstance(value, PretendTensor) else value


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The value with each leaf of its tuples, lists and dicts changed."""
    if isinstance(value, tuple | list):
        return type(value)(mapped(change, part) for part in value)
    return {key: mapped(change, part) for key, part in value.items()} if isinstance(value, dict) else change(value)


def leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    mapped(found.append, value)
    return found


def is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class Dispatch(TorchDispatchMode):
    """Computes on the CPU what is asked of the pretended GPU, and counts waits."""

    def __init__(self, waits: Counter[str], calls: Counter[str]) -> None:
        super().__init__()
        self.waits, self.calls = waits, calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        is_pretended = any(isinstance(tensor, PretendTensor) for tensor in tensors)
        name = func.name().split(".")[0]
        goes_there = is_gpu(kwargs.get("device"))
        if is_pretended:
            self.calls[name] += 1
            self.count(name, args, kwargs, tensors)
        if "device" in kwargs and tensors and is_pretended != goes_there:
            self.waits["to the device" if goes_there else "to the host"] += 1
        if goes_there:
            kwargs["device"] = torch.device("cpu")
        result = func(*mapped(inner_of, args), **mapped(inner_of, kwargs))
        if not (goes_there or (is_pretended and kwargs.get("device") is None)):
            return result
        return args[0] if name.endswith("_") else mapped(pretend, result)

    def count(self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        indices = (
            [
                index
                for index in (args[1] if name.startswith("aten::index") and len(args) > 1 else ())
                if isinstance(index, Tensor)
            ]
            if name in ("aten::index", "aten::index_put", "aten::index_put_")
            else []
        )
        from_host = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
        if name in SIZE_ON_DEVICE:
            self.waits[name] += 1
        elif any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.waits["boolean index"] += 1
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.waits[name] += 1
        elif from_host and (indices or name in ("aten::where", "aten::copy_")):
            self.waits[f"{name} with a tensor of the host"] += 1


class PretendGpu(TorchFunctionMode):
    """A context in which `device="cuda"` works without a GPU; `waits` counts what the host would wait for, `calls` all
    operations on the device's tensors, by name; `transfers` is the number of tensors that went to or fro."""

    def __init__(self, monkeypatch: Any) -> None:
        super().__init__()
        torch._C._ensureCUDADeviceGuardSet()
        self.waits: Counter[str] = Counter()
        self.transfers = 0
        self.calls: Counter[str] = Counter()
        self.dispatch = Dispatch(self.waits, self.calls)
        monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
        monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # in which tensors of a class of ours fail
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self)

    def synchronize(self) -> None:
        """The wait of `torch.cuda.Stream.synchronize`: this is its own stream."""
        self.waits["synchronize"] += 1

    def __enter__(self) -> PretendGpu:
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # its tensors are of another class
        self.dispatch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.dispatch.__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(False)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.move(func, args, kwargs)
        if func is Tensor.__getitem__:  # torch makes a tensor of the device of a list of indices
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(torch.tensor(index) if isinstance(index, list) else index for index in indices)
        if func in NEW and isinstance(args[0], PretendTensor):
            if func is Tensor.new_tensor:
                self.waits["numbers to the device"] += 1
            kwargs.pop("device", None)
            return pretend(func(args[0].held, *args[1:], **kwargs))
        if is_gpu(kwargs.get("device")):
            if func in (torch.tensor, torch.as_tensor):
                self.waits["numbers to the device"] += not isinstance(args[0], PretendTensor)
            return pretend(func(*map(inner_of, args), **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    def move(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        target = kwargs.pop("device", None)
        if func is Tensor.cpu:
            target = "cpu"
        elif func is Tensor.cuda:
            target, rest = DEVICE, []
        elif rest and isinstance(rest[0], str | torch.device):
            target = rest.pop(0)
            rest = [] if rest and rest[0] is None else rest
        elif rest and isinstance(rest[0], Tensor):
            target, kwargs["dtype"] = rest[0].device, rest.pop(0).dtype
        if target is None:
            return func(tensor, *rest, **kwargs)
        is_there, goes_there = isinstance(tensor, PretendTensor), is_gpu(target)
        is_asynchronous = bool(kwargs.get("non_blocking")) and (is_there or getattr(tensor, "was_pinned", False))
        if is_there != goes_there:
            self.transfers += 1
            if not is_asynchronous:
                self.waits["to the host" if is_there else "to the device"] += 1
        moved = inner_of(tensor).to(*rest, **kwargs) if rest or kwargs else inner_of(tensor)
        return pretend(moved) if goes_there else moved


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """A copy that is taken for pinned memory."""
    pinned = tensor.clone()
    pinned.was_pinned = True  # type: ignore[attr-defined]
    return pinned
