"""Residual: a block's input that knows when the block adds its attention to it, and lets rows merge just there.

A pre-norm block computes x = x + attention(norm(x)) and then x = x + mlp(norm(x)). Merging belongs between the two,
where x is a local of the block's `forward`, which no hook reaches. So the block is handed its input as this kind of
tensor: every operation sees plain numbers and makes plain tensors, but the first sum with it after the attention has
made its keys is passed to `Joint.sum`, and what that returns is what the block goes on with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SUMS = ("add", "__add__", "__radd__", "add_", "__iadd__")


class Joint:
    """What happens between the two residual additions of one block in one forward.

    Attributes:
        ready: whether the attention has made its keys. met: whether the sum has been made.
    """

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self._make, self.ready, self.met = make, False, False

    def sum(self, whole: Tensor) -> Tensor:
        """What the block goes on with instead of `whole`, its input plus its attention."""
        if not self.ready or self.met:
            return whole
        self.met = True
        return self._make(whole)


class Residual(Tensor):
    """A block's input; made by `as_subclass`, so that it has the input's own storage and gradient."""

    joint: Joint

    @classmethod
    def of(cls, x: Tensor, joint: Joint) -> Residual:
        residual = x.as_subclass(cls)
        residual.joint = joint
        return residual

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in _SUMS and name != "to":
            return result
        joint = next((x.__dict__.get("joint") for x in args if isinstance(x, Residual)), None)
        if joint is None or not isinstance(result, Tensor):
            return result
        if name == "to":  # accelerate's hooks bring what a block is given to its device
            return result if isinstance(result, Residual) else Residual.of(result, joint)
        return joint.sum(result)


def dissolve(x: Any) -> None:
    """Make a Residual whose sum has been made a tensor like any other, for whoever has kept it."""
    if isinstance(x, Residual):
        del x.joint
        x.__class__ = Tensor  # pyright: ignore[reportAttributeAccessIssue]
