"""A device that is not there: tensors that say they are on a GPU, computed on the CPU, and what a GPU would have paid.

`Counter` counts launches (operations on device tensors that are no views), copies between host and device, and waits:
operations that need the device's numbers on the host, which stand still until everything queued has run.
"""

from __future__ import annotations

import sys
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
aten: Any = torch.ops.aten
#: what a GPU cannot enqueue without the numbers themselves, as their result's shape or a Python value hangs on them
WAITING = {
    "_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount",
    "equal", "histc", "_linalg_check_errors",
}  # fmt: skip


class OnDevice(torch.Tensor):
    """A tensor that says it is on GPU; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        new = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )
        new.held = held
        return new

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(Counter(), func, args, dict(kwargs or {}))  # nobody counts


class Counter(TorchDispatchMode):
    """Counts while it is entered; `at` says how often each line of vtc waited or launched."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Tally[str] = Tally()
        self.launches: Tally[str] = Tally()
        self.launched: Tally[str] = Tally()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(self, func, args, dict(kwargs or {}))

    def note(self, name: str, launch: bool, wait: bool) -> None:
        if launch:
            self.launches[where()] += 1
            self.launched[name] += 1
        if wait:
            self.waits[where()] += 1


def _run(counter: Counter, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`func` on the CPU, its result on the device if an argument or the caller says so."""
    name, flat, to = func.overloadpacket.__name__, tree_flatten((args, kwargs))[0], kwargs.get("device")
    ours = any(isinstance(x, OnDevice) for x in flat)
    onto = ours if to is None else torch.device(to).type == GPU.type
    if to is not None:
        kwargs["device"] = CPU
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if name in ("_to_copy", "copy_"):
        target, source = args[0], args[-1 if name == "_to_copy" else 1]
        was = isinstance(source, OnDevice)
        onto = isinstance(target, OnDevice) if name == "copy_" else was if to is None else onto
        quiet = onto and (kwargs.get("non_blocking") or args[2:3] == (True,))
        counter.note(name, was or onto, was != onto and not quiet)
    elif ours or onto:
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        counter.note(name, not _is_view(func), name in WAITING or counted or _masked(name, args))
    if func._schema.is_mutable and func._schema.name.endswith("_"):
        return args[0]
    if kwargs.get("out") is not None:
        return kwargs["out"]
    return tree_map(_on_device, result) if onto else result


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnDevice) else x


def _on_device(x: Any) -> Any:
    return OnDevice(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x


def _masked(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose True entries have to be counted first; a single number needs no counting."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    masks = any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None)
    return masks and not (name != "index" and args[2].numel() == 1)


def _is_view(func: Any) -> bool:
    """Whether there is nothing to compute, for an operation that is a view or makes an empty tensor."""
    name = func.overloadpacket.__name__
    return func.is_view or "empty" in name or name in ("detach", "_unsafe_view", "lift_fresh", "alias", "is_same_size")


def where() -> str:
    """The line of vtc that is running, `other` where none is."""
    frame = sys._getframe(1)
    found = "other"
    while frame is not None:
        path = frame.f_code.co_filename
        for part in ("/vtc/", "/kernels/", "/models/"):
            if part in path and "/site-packages/" not in path and "/tests/" not in path:
                return f"{path.rsplit('/', 2)[-2]}/{path.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return found


class _Event:
    """A CUDA event of a device that is not there."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...


_on_host = torch.tensor


def _tensor(data: Any, *, device: Any = None, **how: Any) -> torch.Tensor:
    made = _on_host(tree_map(lambda x: x.tolist() if isinstance(x, OnDevice) else x, data), **how)
    return made if device is None else made.to(device)


@contextmanager
def pretended() -> Iterator[None]:
    """Let torch believe that there is a GPU, as far as creating tensors and timing them goes."""
    torch._C._ensureCUDADeviceGuardSet()  # without a driver: one that does nothing
    with (
        mock.patch.object(torch.cuda, "_lazy_init", return_value=None),
        mock.patch.object(torch.cuda, "Event", _Event),
        mock.patch.object(torch.cuda, "current_stream", return_value=None),
        mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self),
        mock.patch.object(torch, "tensor", _tensor),  # its own way to a device goes past every mode
        mock.patch.dict("os.environ", {"VTC_KERNELS": "reference"}),
    ):
        yield


def put(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module's parameters and buffers to the pretended device, in place."""
    for own in module.modules():
        for name, x in own._parameters.items():
            if x is not None:
                own._parameters[name] = torch.nn.Parameter(OnDevice(x.detach()), requires_grad=False)
        for name, x in own._buffers.items():
            if x is not None:
                own._buffers[name] = OnDevice(x)
    return module
