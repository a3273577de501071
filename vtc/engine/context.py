"""What hooks of one forward share: frames in a ContextVar, so that threads and tasks never meet.

A model's first hook pushes a frame, an always-called hook pops it; every hook between them asks `top` for its owner's.
Frames of several owners nest: a wrapped draft model may run while a wrapped target's frame is open.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback

_FRAMES: ContextVar[tuple[tuple[object, Any], ...]] = ContextVar("vtc_frames", default=())
#: what torch.compile(fullgraph=True) says of a wrapped model
UNCOMPILED = "vtc chooses tokens by their values, which no graph can hold; compile without fullgraph=True"
Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """A hook that torch.compile leaves alone: the graph breaks around it, and what it does is never traced.

    A decorator of methods, not of bound ones: a deep copy of a model keeps hooks that are bound to its own engine.
    """
    left_alone: Any = torch.compiler.disable(function, reason=UNCOMPILED)

    @wraps(function)
    def hook(*args: Any, **kwargs: Any) -> Any:
        # `disable` costs a layer's hook more than what the hook does: only where something is being compiled
        if torch.compiler.is_compiling() or get_eval_frame_callback() is not None:
            return left_alone(*args, **kwargs)
        return function(*args, **kwargs)

    return hook  # type: ignore[return-value]


def push(owner: object, state: Any) -> None:
    """Open a frame of `owner`; one that an interruption (Ctrl-C) left open is dropped."""
    _FRAMES.set(((owner, state), *(frame for frame in _FRAMES.get() if frame[0] is not owner)))


def pop(owner: object) -> None:
    """Close the frame of `owner`."""
    _FRAMES.set(tuple(frame for frame in _FRAMES.get() if frame[0] is not owner))


def top(owner: object) -> Any:
    """The state of `owner`'s open frame, None if there is none."""
    for one, state in _FRAMES.get():
        if one is owner:
            return state
    return None


def states() -> list[Any]:
    """The states of all open frames, innermost first."""
    return [state for _, state in _FRAMES.get()]
