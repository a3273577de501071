"""Which methods the plug-in serves: the contract is asked, so that a new one is tested as soon as it passes."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.methods.base.registry import list_methods
from vtc.serving.vllm.contract import family_of, read_spec


def qualifying(model_type: str) -> list[str]:
    """Names of all methods that ship and pass as they are, and todre's first stage alone."""
    found = []
    for name in [*(info.name for info in list_methods()), "todre(tau=None)"]:
        try:
            read_spec({"method": name}, family_of(model_type))
        except (TypeError, ValueError):
            continue
        found.append(name)
    return found


#: methods that compare neighbours in an order of scores, which a difference in the seventh digit may change: of 20
#: questions so many may be answered in another way
CLOSE = {"vispruner": 4, "vqtoken": 1}


def alike(method: str, found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> bool:
    """Whether all answers are the same, but for as many as CLOSE allows."""
    others = [number for number, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
    return len(others) <= CLOSE.get(method, 0)


def reads(name: str, model_type: str) -> bool:
    """Whether a method reads the vision tower."""
    return bool(read_spec({"method": name}, family_of(model_type)).reads)


def reads_behind(name: str) -> bool:
    """Whether a method reads blocks of tiny-llava's tower behind the one whose features the model takes."""
    spec = read_spec({"method": name}, family_of("llava"))
    return reads(name, "llava") and max(spec.method.tower_layers(6, 4)) > 4
